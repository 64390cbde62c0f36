"""Run the real server in a thread, or look at it from outside with raw bytes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from ridgeline.engine.async_engine import AsyncEngine
from ridgeline.serve.options import ServerOptions
from ridgeline.serve.server import Server
from ridgeline.serve.service import Service
from tests.serve.engines import PacedExecutor, make_engine

JSON = {"content-type": "application/json"}


@dataclass
class Live:
    """A running server."""

    server: Server
    engine: AsyncEngine
    executor: PacedExecutor
    url: str

    @property
    def service(self) -> Service:
        return self.server.service

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def canary(self) -> str:
        """A greedy answer that nothing may change."""
        body = {"prompt": "the canary", "max_tokens": 64, "temperature": 0}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, headers=self._auth(), timeout=20)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["text"])

    def num_held_blocks(self) -> int:
        stats = self.engine.stats()
        return stats.num_blocks - stats.num_free_blocks - stats.num_cached_blocks

    def wait_idle(self, timeout_s: float = 10.0) -> None:
        """Until nothing runs and no block is held."""
        eventually(lambda: self.num_held_blocks() == 0 and self.num_live() == 0, timeout_s)

    def num_live(self) -> int:
        stats = self.engine.stats()
        return stats.num_running + stats.num_waiting

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def talk(self, raw: bytes) -> tuple[int, bytes]:
        """Send bytes, read until the server closes or an answer is complete: (status, everything)."""
        with self.connect() as sock:
            with contextlib.suppress(OSError):
                sock.sendall(raw)
            return read_answer(sock)

    def _auth(self) -> dict[str, str]:
        keys = self.service.options.api_keys
        return {"authorization": f"Bearer {keys[0]}"} if keys else {}


@contextlib.contextmanager
def serving(engine: dict[str, Any] | None = None, **options: Any) -> Iterator[Live]:
    made, executor = make_engine(**(engine or {}))
    with running(lambda: made, **options) as server:
        eventually(lambda: made.is_ready)
        yield Live(server, made, executor, server.address)


@contextlib.contextmanager
def running(load: Callable[[], AsyncEngine], **options: Any) -> Iterator[Server]:
    server = Server(load, ServerOptions(port=0, log_level="error", **{"drain_timeout_s": 1.0, **options}))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started)
        yield server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "this should have become true"
        time.sleep(0.005)


def read_answer(sock: socket.socket) -> tuple[int, bytes]:
    """(status, all bytes) of the first answer; (0, ...) where none came."""
    data = b""
    with contextlib.suppress(OSError):
        while chunk := sock.recv(65536):
            data += chunk
            head, ended, body = data.partition(b"\r\n\r\n")
            length = [
                int(line.partition(b":")[2])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            ]
            if ended and length and len(body) >= length[0]:
                break
    status = int(data.split(b" ", 2)[1]) if data.startswith(b"HTTP/1.1 ") else 0
    return status, data


def request(path: str, body: Any, *, headers: str = "") -> bytes:
    """A POST as raw bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
    )
    return (head + headers + "\r\n").encode() + raw


def events(lines: Iterator[str]) -> list[Any]:
    """The events of a stream; asserts that it ends in [DONE]."""
    found = [line.removeprefix("data: ") for line in lines if line]
    assert found[-1] == "[DONE]"
    return [json.loads(data) for data in found[:-1]]


def stream(client: httpx.Client, path: str, body: dict[str, Any]) -> list[Any]:
    with client.stream("POST", path, json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            answer.read()
            raise AssertionError(answer.text)
        assert answer.headers["content-type"].startswith("text/event-stream")
        return events(answer.iter_lines())
