"""One client connection: uvicorn's httptools protocol with deadlines, size limits and connection caps.

uvicorn has no deadline for receiving a request, no limit on headers and answers a malformed request in plain
text. Here each connection has at most one running deadline:

    connected --header_timeout--> headers complete --body_timeout--> body complete --> (the answer: none)
                                                             answer complete --keep_alive--> closed

A deadline that passes is answered with 408 where no answer has begun, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from ridgeline.serve.errors import ApiError
from ridgeline.serve.options import ServerOptions

ABORT_CONNECTION = "ridgeline.abort_connection"
"""ASGI scope extension: a function that drops the connection without waiting for its write buffer."""
LINGER_S = 1.0


class ConnectionCount:
    """Open connections, in total and by address."""

    def __init__(self) -> None:
        self.total = 0
        self.by_ip: Counter[str] = Counter()

    def add(self, ip: str) -> None:
        self.total += 1
        self.by_ip[ip] += 1

    def remove(self, ip: str) -> None:
        self.total -= 1
        self.by_ip[ip] -= 1
        if self.by_ip[ip] <= 0:
            del self.by_ip[ip]


def protocol_class(options: ServerOptions) -> type[HttpToolsProtocol]:
    """The protocol for uvicorn's `Config(http=...)`, bound to its limits."""
    count = ConnectionCount()

    class BoundConnection(Connection):
        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(config, server_state, app_state, _loop)
            self.options = options
            self.count = count

    return BoundConnection


class Connection(HttpToolsProtocol):
    """Adds to uvicorn's protocol who may connect, how long a request may take and how large its head is."""

    options: ServerOptions
    count: ConnectionCount

    # -- connection --
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._deadline: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_bytes = 0
        self._ip = self.client[0] if self.client else ""
        self._refused = False
        self.count.add(self._ip)
        if self.count.total > self.options.max_connections:
            limit = self.options.max_connections
            self._refuse(
                503, f"the server has reached its limit of {limit} connections", "too_many_connections"
            )
        elif self.count.by_ip[self._ip] > self.options.max_connections_per_ip:
            limit = self.options.max_connections_per_ip
            self._refuse(
                429, f"this address has reached its limit of {limit} connections", "too_many_connections"
            )
        else:
            self._set_deadline(self.options.header_timeout_s, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self.count.remove(self._ip)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._deadline is None:
                self._set_deadline(self.options.header_timeout_s, self._head_too_slow)
        super().data_received(data)
        # What is still an unfinished head counts in full, also where llhttp has not yet called back.
        if self._in_head and self._head_bytes > self.options.max_header_bytes and not self._refused:
            self._head_too_large()

    # -- parser callbacks (an exception here surfaces in data_received as HttpParserError) --
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT_CONNECTION: self.transport.abort}  # type: ignore[dict-item]
        self._header_count_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._check_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._check_head(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        self._in_head = False
        self._set_deadline(self.options.body_timeout_s, self._body_too_slow)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refused:
            return
        self._clear_deadline()
        self._in_head = True
        self._head_bytes = 0
        super().on_message_complete()

    # -- limits --
    def _check_head(self, num_bytes: int) -> None:
        self._header_count_bytes += num_bytes
        too_many = len(self.headers) > self.options.max_headers
        if too_many or self._header_count_bytes > self.options.max_header_bytes:
            self._head_too_large()
            raise httptools.HttpParserError("head too large")

    def _head_too_large(self) -> None:
        limit = f"{self.options.max_headers} headers or {self.options.max_header_bytes} bytes"
        self._refuse(431, f"the request line and headers exceed the limit of {limit}", "headers_too_large")

    def _head_too_slow(self) -> None:
        if self._head_bytes == 0 or self._is_answering():
            self.transport.close()
        else:
            limit = self.options.header_timeout_s
            self._refuse(408, f"the headers did not arrive within {limit:g} s", "request_timeout")

    def _body_too_slow(self) -> None:
        if self.pipeline or self.cycle.response_started:
            self.transport.abort()
        else:
            limit = self.options.body_timeout_s
            self._refuse(408, f"the body did not arrive within {limit:g} s", "request_timeout")

    def _is_answering(self) -> bool:
        """An answer is on the wire, or the previous one is not finished: nothing may come between."""
        return bool(self.pipeline) or (
            self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        )

    def send_400_response(self, msg: str) -> None:
        if self._refused:
            return
        if self._is_answering():
            self.transport.abort()
            return
        self._refuse(400, "the request is not valid HTTP/1.1", "invalid_http")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer outside ASGI and close. The unfinished request, if any, sees a disconnect."""
        self._refused = True
        self._clear_deadline()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what the application still sends is dropped
            self.cycle.message_event.set()
        body = json.dumps(ApiError(status, message, code=code).body).encode()
        head = [STATUS_LINE[status], b"content-type: application/json\r\n"]
        if status in (429, 503):
            head.append(b"retry-after: 1\r\n")
        head.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body))
        self.transport.write(b"".join([*head, body]))
        # Half-close and let go of what still arrives: closing at once would reset the connection, and the
        # client might never see the answer.
        self.transport.write_eof()
        self._deadline = self.loop.call_later(LINGER_S, self.transport.abort)

    # -- the one deadline --
    def _set_deadline(self, seconds: float, expired: Any) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, expired)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
