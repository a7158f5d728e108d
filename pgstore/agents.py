"""What a browser says of itself, as its family and its system."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from .errors import ConfigurationError

__all__ = ["Agent", "check_parser"]


@dataclass(frozen=True, slots=True)
class Agent:
    """A browser by its User-Agent: for device lists, and to tell one device from another.

    ``text`` is the header as it was stored, or None. Anybody may send any text: show it escaped,
    and conclude nothing from it.

    ``browser`` and ``system`` are parsed when they are asked for, by ``ua-parser`` (the extra
    ``pgstore[agents]``), which remembers what it parsed. Without it, both are None.
    """

    text: str | None

    @property
    def browser(self) -> str | None:
        """The browser's family, such as "Firefox" or "Mobile Safari"; None when it is unknown."""
        return _families(self.text)[0]

    @property
    def system(self) -> str | None:
        """The operating system's family, such as "Windows" or "iOS"; None when it is unknown."""
        return _families(self.text)[1]

    def is_like(self, other: Agent) -> bool:
        """Tell whether both are one browser on one system, whatever their versions.

        Never for a missing one; unknown ones are alike when their texts are equal.
        """
        if not (self.text and other.text):
            return False
        if self.text == other.text:
            return True
        families = _families(self.text)
        return families[0] is not None and families == _families(other.text)

    def __str__(self) -> str:
        browser, system = _families(self.text)
        return (browser or "unknown browser") + (f" on {system}" if system else "")


def check_parser() -> None:
    """Raise `ConfigurationError` unless agents can be parsed."""
    if find_spec("ua_parser") is None:
        raise ConfigurationError(
            "to compare agents, ua-parser is needed: pip install 'pgstore[agents]'"
        )


def _families(text: str | None) -> tuple[str | None, str | None]:
    if not text:
        return None, None
    try:
        import ua_parser
    except ImportError:
        return None, None
    browser, system = ua_parser.parse_user_agent(text), ua_parser.parse_os(text)
    return browser.family if browser else None, system.family if system else None
