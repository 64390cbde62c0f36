"""Answers that watch their client: when it leaves, or stops reading, the work behind them is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ridgeline.serve.connection import ABORT_CONNECTION
from ridgeline.serve.errors import from_engine

logger = logging.getLogger("ridgeline.serve")
T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before the answer was complete."""


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Await `work`; cancel it and raise ClientGone as soon as the client disconnects."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone:
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


class Reply(Response):
    """An answer computed while the client is watched; what `work` raises becomes an error answer."""

    def __init__(self, work: Callable[[], Awaitable[Response]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await while_connected(receive, self._work())
        except ClientGone:
            scope["state"]["client_gone"] = True
            return
        except Exception as error:
            answer = from_engine(error)
            if answer.status == 500 and answer is not error:
                logger.exception("a request failed")
            response = answer.response()
        await response(scope, receive, send)


class EventStream(Response):
    """Server-sent events. The write buffer is bounded: a full one pauses the stream, then ends it.

    `events` yields finished events as bytes; it is closed in every case, which aborts the request behind it.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        write_timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers={**(headers or {}), "Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._events = events
        self._write_timeout_s = write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send_all(send))
        except ClientGone:
            scope["state"]["client_gone"] = True
        except TimeoutError:
            scope["state"]["client_gone"] = True
            logger.warning("a client read nothing for %g s: cut off", self._write_timeout_s)
            drop = scope.get("extensions", {}).get(ABORT_CONNECTION)
            if drop is not None:
                drop()
        finally:
            await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            async with asyncio.timeout(self._write_timeout_s):
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
