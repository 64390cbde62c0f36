"""Run the application under uvicorn: listen first, load beside it, drain on SIGTERM, exit with 0.

SIGTERM/SIGINT -> no new connections, new requests 503 -> running requests finish (drain_timeout_s)
               -> the rest is aborted, each with a last event -> engine closed -> exit 0
a second one   -> the rest is aborted at once
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from ridgeline.engine.errors import RidgelineError
from ridgeline.serve.app import create_app
from ridgeline.serve.connection import protocol_class
from ridgeline.serve.options import ServerOptions
from ridgeline.serve.service import Service

if TYPE_CHECKING:
    from ridgeline.engine.async_engine import AsyncEngine

Loader = Callable[[], "AsyncEngine"]
logger = logging.getLogger("ridgeline.serve")

FLUSH_S = 2.0
"""After the engine has drained, answers may take so long to reach their clients."""


def run(
    engine: AsyncEngine | Loader, options: ServerOptions, *, on_ready: Callable[[str], None] | None = None
) -> None:
    """Serve until a signal. `engine`, or a function that loads it (called in a thread once the port listens).

    `on_ready` is called with the server's address when the first request can be taken. Returns after a
    graceful drain; re-raises what the loader raised.
    """
    server = Server(engine, options, on_ready=on_ready)
    server.run()
    if server.load_error is not None:
        raise server.load_error


class Server(uvicorn.Server):
    """uvicorn's server with loading and draining of an engine around it."""

    def __init__(
        self,
        engine: AsyncEngine | Loader,
        options: ServerOptions,
        *,
        on_ready: Callable[[str], None] | None = None,
    ) -> None:
        self.options = options
        self.load_error: Exception | None = None
        self._loader: Loader = engine if callable(engine) else lambda: engine
        self._on_ready = on_ready
        self._loading: asyncio.Task[None] | None = None
        self.app: FastAPI = create_app(None, options)
        super().__init__(
            uvicorn.Config(
                self.app,
                host=options.host,
                port=options.port,
                http=protocol_class(options),
                ws="none",
                lifespan="off",
                loop="uvloop" if _has_uvloop() else "asyncio",
                access_log=False,
                log_config=_log_config(options.log_level),
                log_level=options.log_level,
                timeout_keep_alive=options.keep_alive_s,  # type: ignore[arg-type]
                timeout_graceful_shutdown=FLUSH_S,  # type: ignore[arg-type]
                server_header=False,
                proxy_headers=False,
                backlog=2048,
            )
        )

    @property
    def service(self) -> Service:
        """What the routes share."""
        service: Service = self.app.state.service
        return service

    @property
    def address(self) -> str:
        """Where it listens, once it does."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then begin to load."""
        await super().startup(sockets)
        if self.started:
            self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            engine = await asyncio.to_thread(self._loader)
            self.service.attach(engine)
            await engine.start()
        except Exception as error:
            self.load_error = error
            if not isinstance(error, RidgelineError):
                logger.exception("the model could not be loaded")
            self.should_exit = True
            return
        if self._on_ready is not None and not self.should_exit:
            self._on_ready(self.address)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: at once. The exit code stays 0, so the signal is not raised again."""
        if self.should_exit:
            self.force_exit = True
        self.service.draining = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, drain the engine, let answers go out, close."""
        self.service.draining = True
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self._loading is not None and not self._loading.done():
            await self._until_forced(asyncio.shield(self._loading))
        engine = self.service.engine
        if engine is not None and self.load_error is None:
            drained = asyncio.ensure_future(engine.drain(self.options.drain_timeout_s))
            await self._until_forced(drained)
            if not drained.done():
                drained.cancel()
                await engine.drain(0.0)
        await super().shutdown(sockets)
        if engine is not None:
            await engine.close()

    async def _until_forced(self, work: asyncio.Future[Any]) -> None:
        while not work.done() and not self.force_exit:
            await asyncio.wait([work], timeout=0.1)


def _log_config(level: str) -> dict[str, Any]:
    """Ours and uvicorn's loggers, one line an entry on standard error."""
    logger_config = {"handlers": ["stderr"], "level": level.upper()}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {"uvicorn": {**logger_config, "propagate": False}, "ridgeline": logger_config},
    }


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return sys.platform != "win32"
