"""A fault proxy on which time passes between a request, its arrival and its answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from support.fault_proxy import FaultProxy


class HoldingProxy(FaultProxy):
    """Keeps one connection waiting, and lets all others go on.

    ``hold_reply_to`` is delivered when it comes, and from then on that connection gets no answer;
    ``hold_request`` is not delivered. ``held`` is set when it has come; `release` sends on what
    was kept.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.hold_reply_to: bytes | None = None
        self.hold_request: bytes | None = None
        self.held = threading.Event()
        self._silent: set[asyncio.StreamWriter] = set()
        self._kept: set[asyncio.StreamWriter] = set()

    def release(self) -> None:
        """Send on what was kept, and keep nothing more."""
        self.hold_reply_to = self.hold_request = None
        self._silent.clear()
        self._kept.clear()
        self.held.clear()

    async def _forward_up(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        async def look(data: bytes) -> None:
            if self.hold_reply_to and self.hold_reply_to in data:
                self.hold_reply_to = None
                self._silent.add(client)
                self.held.set()
            if self.hold_request and self.hold_request in data:
                self.hold_request = None
                self._kept.add(client)
                self.held.set()
            while client in self._kept:
                await asyncio.sleep(0.005)

        await super()._forward_up(_Watched(reader, look), server, client)

    async def _forward_down(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        async def look(data: bytes) -> None:
            while client in self._silent:
                await asyncio.sleep(0.005)

        await super()._forward_down(_Watched(reader, look), client)


class _Watched(asyncio.StreamReader):
    """Shows what is read before it is handed on."""

    def __init__(self, reader: asyncio.StreamReader, look: Callable[[bytes], Any]) -> None:
        self._reader = reader
        self._look = look

    async def read(self, n: int = -1) -> bytes:
        data = await self._reader.read(n)
        await self._look(data)
        return data
