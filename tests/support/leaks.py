"""Watches a whole test run for secrets in what is logged and raised."""

from __future__ import annotations

import base64
import logging
import re
from typing import Any

from pgstore import errors, ids
from pgstore.codecs import SecureCookie

# Where a secret could hide: its hex form and its base64url form are runs of these.
_RUN = re.compile(r"[A-Za-z0-9_-]{43,}")


class LeakWatch(logging.Handler):
    """Collects every secret that is made, and every text that is logged or raised by pgstore."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.secrets: set[str] = set()
        self.texts: set[str] = set()

    def install(self) -> None:
        """Watch from now on, to the end of the process."""
        root = logging.getLogger("pgstore")
        root.addHandler(self)
        root.setLevel(logging.DEBUG)
        new_secret, encode = ids._new_secret, SecureCookie.encode

        def watched_secret() -> bytes:
            secret = new_secret()
            self.secrets.add(secret.hex())
            # As it stands in the text of an id, whose 20th byte begins it.
            self.secrets.add(base64.urlsafe_b64encode(secret[2:]).decode().rstrip("="))
            self.secrets.add(base64.urlsafe_b64encode(secret).decode().rstrip("="))
            return secret

        def watched_encode(codec: SecureCookie, name: str, value: Any) -> str:
            text = encode(codec, name, value)
            self.secrets.add(text.rpartition(".")[2])
            return text

        ids._new_secret = watched_secret
        SecureCookie.encode = watched_encode  # type: ignore[assignment,method-assign]
        watch = self

        def init(error: errors.PGStoreError, *args: object) -> None:
            Exception.__init__(error, *args)
            watch.texts.add(f"{error} {error!r}")

        errors.PGStoreError.__init__ = init  # type: ignore[assignment,method-assign]

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.add(self.format(record))

    def leaks(self) -> list[str]:
        """Return the texts that hold a secret."""
        lengths = {len(secret) for secret in self.secrets}
        return [
            text
            for text in self.texts
            for run in _RUN.findall(text)
            for length in lengths
            for start in range(len(run) - length + 1)
            if run[start : start + length] in self.secrets
        ]
