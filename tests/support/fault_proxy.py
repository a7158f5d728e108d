"""A TCP proxy on 127.0.0.1 that tests drive: it counts round trips, and it fails on demand.

It runs an event loop in a thread of its own. Attributes may be set at any time:

    with FaultProxy("127.0.0.1", 5432) as proxy:     # connect to proxy.port
        proxy.latency = 0.05          # seconds added to each chunk, each way
        proxy.stall = True            # keep the sockets open and forward nothing
        proxy.refuse = True           # accept and reset new connections
        proxy.kill()                  # reset every open connection now
        proxy.lose_reply_to = b"UPDATE"   # deliver what holds this, then reset before the answer
        proxy.lose_request = b"UPDATE"    # reset before what holds this is delivered
        proxy.lose_each = b"UPDATE"       # reset so each time
        proxy.stop_listening()        # new connections are refused by the kernel
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Self


class FaultProxy:
    """Forwards PostgreSQL's protocol between its own port and a server's."""

    def __init__(self, host: str, port: int) -> None:
        self.latency = 0.0
        self.stall = False
        self.refuse = False
        self.lose_reply_to: bytes | None = None
        self.lose_request: bytes | None = None
        self.lose_each: bytes | None = None
        self.accepted = 0
        # Sync and Query messages that were forwarded: each asks for one answer and waits for it.
        self.round_trips = 0
        self.port = 0
        self._target = (host, port)
        self._open: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._muted: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.start_listening()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop_listening()
        self.kill()
        self._call(self._drain())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start_listening(self) -> None:
        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

        self._call(start())

    def stop_listening(self) -> None:
        async def stop() -> None:
            self._server.close()

        self._call(stop())

    def kill(self) -> None:
        """Reset every open connection, on both sides."""

        async def kill() -> None:
            for pair in list(self._open):
                for writer in pair:
                    _reset(writer)

        self._call(kill())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _drain(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuse:
            _reset(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        pair = (writer, server_writer)
        self._open.add(pair)
        try:
            await asyncio.gather(
                self._forward_up(reader, server_writer, writer),
                self._forward_down(server_reader, writer),
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(pair)
            self._muted.discard(writer)
            for each in pair:
                each.close()

    async def _forward_up(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        counter = _RoundTrips()
        while data := await reader.read(65536):
            await self._hold()
            if self.lose_request and self.lose_request in data:
                self.lose_request = None
                _reset(client)
                raise ConnectionResetError
            if self.lose_each and self.lose_each in data:
                _reset(client)
                raise ConnectionResetError
            lose = self.lose_reply_to is not None and self.lose_reply_to in data
            if lose:
                self.lose_reply_to = None
                self._muted.add(client)
            self.round_trips += counter.feed(data)
            server.write(data)
            await server.drain()
            if lose:
                await asyncio.sleep(0.1)  # for the server to be done with it
                _reset(client)
                raise ConnectionResetError
        if server.can_write_eof():
            server.write_eof()

    async def _forward_down(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            await self._hold()
            if client not in self._muted:
                client.write(data)
                await client.drain()
        if client.can_write_eof():
            client.write_eof()

    async def _hold(self) -> None:
        if self.latency:
            await asyncio.sleep(self.latency)
        while self.stall:
            await asyncio.sleep(0.005)


class _RoundTrips:
    """Counts what is answered by one ReadyForQuery, in the messages of one client."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False

    def feed(self, data: bytes) -> int:
        """Return how many Sync and Query messages end in ``data``."""
        self._buffer += data
        count = 0
        while True:
            # The first message has no type byte.
            head = 1 if self._started else 0
            if len(self._buffer) < head + 4:
                return count
            (length,) = struct.unpack_from(">I", self._buffer, head)
            if len(self._buffer) < head + length:
                return count
            if not self._started:
                # An SSLRequest is followed by the real start.
                (code,) = struct.unpack_from(">I", self._buffer, 4)
                self._started = code >> 16 == 3
            elif self._buffer[:1] in (b"S", b"Q"):
                count += 1
            self._buffer = self._buffer[head + length :]


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
