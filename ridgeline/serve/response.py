"""Answers that watch their client: when it leaves, or stops reading, the work behind them is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
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


class WriteWatch:
    """Cancels a task whose write has waited for its client too long. One timer a stream, none a write."""

    def __init__(self, timeout_s: float) -> None:
        self.expired = False
        self._timeout_s = timeout_s
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._started_s: float | None = None
        self._timer = self._loop.call_later(timeout_s, self._look)

    def begin(self) -> None:
        """A write starts."""
        self._started_s = self._loop.time()

    def end(self) -> None:
        """It is done."""
        self._started_s = None

    def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()

    def _look(self) -> None:
        waited_s = 0.0 if self._started_s is None else self._loop.time() - self._started_s
        if waited_s < self._timeout_s:
            self._timer = self._loop.call_later(self._timeout_s - waited_s, self._look)
        elif self._task is not None:
            self.expired = True
            self._task.cancel()


class EventStream(Response):
    """Server-sent events. The write buffer is bounded: a full one pauses the stream, then ends it.

    `events` yields finished events as bytes; it is closed in every case, which aborts the request behind it.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], write_timeout_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._events = events
        self._write_timeout_s = write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = WriteWatch(self._write_timeout_s)
        try:
            await while_connected(receive, self._send_all(send, watch))
        except ClientGone:
            scope["state"]["client_gone"] = True
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not watch.expired or task is None:
                raise
            task.uncancel()
            scope["state"]["client_gone"] = True
            self._cut_off(scope)
        finally:
            watch.close()
            await self._events.aclose()

    def _cut_off(self, scope: Scope) -> None:
        logger.warning("a client read nothing for %g s: cut off", self._write_timeout_s)
        drop = scope.get("extensions", {}).get(ABORT_CONNECTION)
        if drop is not None:
            drop()

    async def _send_all(self, send: Send, watch: WriteWatch) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            watch.begin()
            await send({"type": "http.response.body", "body": event, "more_body": True})
            watch.end()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
