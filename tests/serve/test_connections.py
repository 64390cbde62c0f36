"""What only raw sockets can do to a server: slow, huge, malformed, half-closed, too many, gone."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.serve.serving import Live, eventually, read_answer, request, serving

TEXT = "/v1/completions"
BODY = b'{"prompt":"a","max_tokens":1}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LONG = {"prompt": "a long answer", "max_tokens": 1900, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def strict() -> Iterator[Live]:
    """Short deadlines and low limits."""
    with serving(
        header_timeout_s=0.4,
        body_timeout_s=0.4,
        keep_alive_s=0.5,
        max_header_bytes=8192,
        max_headers=50,
        max_body_bytes=100_000,
    ) as live:
        canary = live.canary()
        yield live
        live.wait_idle()
        assert live.canary() == canary


@pytest.fixture(scope="module")
def slow() -> Iterator[Live]:
    """Two milliseconds a step, so that an answer takes seconds."""
    with serving({"step_s": 0.002}) as live:
        yield live


def code_of(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


# -- too slow --------------------------------------------------------------------------------------
def test_silent_connection_is_closed(strict: Live) -> None:
    with strict.connect() as sock:
        started = time.monotonic()
        assert sock.recv(100) == b""
        assert 0.2 < time.monotonic() - started < 5


def test_headers_drop_by_drop(strict: Live) -> None:
    """The deadline is absolute: bytes do not extend it."""
    with strict.connect() as sock:
        started = time.monotonic()
        with contextlib.suppress(OSError):
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            while time.monotonic() - started < 3:
                sock.sendall(b"a: b\r\n")
                sock.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if sock.recv(1, socket.MSG_PEEK):
                        break
        sock.settimeout(5)
        status, answer = read_answer(sock)
        assert status == 408
        assert code_of(answer) == "request_timeout"
        assert time.monotonic() - started < 2


def test_body_drop_by_drop(strict: Live) -> None:
    with strict.connect() as sock:
        started = time.monotonic()
        raw = request(TEXT, LONG)
        sock.sendall(raw[:-20])
        for i in range(20, 1, -1):
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                sock.sendall(raw[-i : -i + 1])
        status, _ = read_answer(sock)
        assert status == 408
        assert time.monotonic() - started < 3
    assert strict.num_live() == 0


def test_idle_keep_alive_is_closed(strict: Live) -> None:
    with strict.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(sock)[0] == 200
        started = time.monotonic()
        assert sock.recv(1) == b""
        assert time.monotonic() - started < 5


def test_second_request_has_its_own_deadline(strict: Live) -> None:
    with strict.connect() as sock:
        for _ in range(4):
            sock.sendall(request(TEXT, {"prompt": "a", "max_tokens": 2}))
            assert read_answer(sock)[0] == 200
            time.sleep(0.2)
        sock.sendall(b"GET /health HTTP/1.1\r\n")
        status, _ = read_answer(sock)
        assert status == 408


def test_a_body_that_nobody_reads(strict: Live) -> None:
    """A GET with an endless body is answered, and the connection does not outlive the deadline."""
    with strict.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert read_answer(sock)[0] == 200
        started = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - started < 5 and sock.send(b"x"):
                time.sleep(0.02)
        assert time.monotonic() - started < 3


# -- too large -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "raw",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"h%d: v\r\n" % i for i in range(200)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nbig: " + b"v" * 20_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nbig: " + b"v" * 1_000_000,
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 1_000_000,
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"n" * 500_000 + b": v\r\n\r\n",
    ],
    ids=["many", "large", "endless", "long path", "endless path", "long name"],
)
def test_head_too_large(strict: Live, raw: bytes) -> None:
    status, answer = strict.talk(raw)
    assert status == 431
    assert code_of(answer) == "headers_too_large"


def test_chunked_body_without_end(strict: Live) -> None:
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    with strict.connect() as sock:
        with contextlib.suppress(OSError):
            sock.sendall(head)
            for _ in range(4):
                sock.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        status, answer = read_answer(sock)
    assert status == 413
    assert code_of(answer) == "body_too_large"


def test_declared_gigabyte_is_refused_unread(strict: Live) -> None:
    assert strict.talk(POST + b"Content-Length: 1000000000\r\n\r\n")[0] == 413


# -- malformed and smuggled ------------------------------------------------------------------------
@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,
        b"GARBAGE\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHo st: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\x00y\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY,
        POST + b"Content-Length: 29\r\nTransfer-Encoding: chunked\r\n\r\n1d\r\n" + BODY + b"\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 29\r\n\r\n1d\r\n" + BODY + b"\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n1d\r\n" + BODY + b"\r\n0\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n" + BODY,
        POST + b"Content-Length: 0x1d\r\n\r\n" + BODY,
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
        b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n\r\n1d\r\n" + BODY + b"XX0\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[-40:])[:44],
)
def test_malformed(strict: Live, raw: bytes) -> None:
    """400 in our shape, and the connection is closed: nothing behind it is taken for a request."""
    status, answer = strict.talk(raw + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 400
    assert code_of(answer[: answer.index(b"}}") + 2]) == "invalid_http"
    assert answer.count(b"HTTP/1.1 ") == 1
    assert strict.num_live() == 0


def test_header_cannot_be_split_into_the_answer(strict: Live) -> None:
    status, answer = strict.talk(
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\x0bb\r\nConnection: close\r\n\r\n"
    )
    assert status == 400
    assert b"\x0b" not in answer


def test_websocket_upgrade_is_not_taken(strict: Live) -> None:
    raw = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    status, _ = strict.talk(raw)
    assert status in (200, 400)


def test_pipelined_requests_are_answered_in_order(strict: Live) -> None:
    raw = (
        request("/tokenize", {"prompt": "abc"})
        + b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    with strict.connect() as sock:
        sock.sendall(raw)
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    assert data.index(b'"count":3') < data.index(b'"version"')


# -- too many --------------------------------------------------------------------------------------
def test_connections_per_address() -> None:
    with serving(max_connections_per_ip=5) as live, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(live.connect())
        eventually(lambda: len(live.server.server_state.connections) == 5)
        status, answer = live.talk(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == 429
        assert b"retry-after" in answer
        stack.close()
        eventually(lambda: not live.server.server_state.connections)
        assert live.talk(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] == 200


def test_connections_in_all() -> None:
    with serving(max_connections=5) as live, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(live.connect())
        eventually(lambda: len(live.server.server_state.connections) == 5)
        assert live.talk(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 503


# -- gone ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_leaving_frees_the_blocks_within_steps(slow: Live, stream: bool, how: str) -> None:
    with slow.connect() as sock:
        sock.sendall(request(TEXT, {**LONG, "stream": stream}))
        eventually(lambda: slow.engine.stats().num_running == 1)
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        if how == "half":
            sock.shutdown(socket.SHUT_WR)
            eventually(lambda: slow.num_live() == 0)
    left = slow.executor.num_steps
    slow.wait_idle(3)
    assert slow.executor.num_steps - left < 250, "the answer had 1900 steps to go"


def test_leaving_one_of_many_does_not_disturb_the_others(slow: Live) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(slow.connect()) for _ in range(8)]
        for i, sock in enumerate(socks):
            sock.sendall(request(TEXT, {**LONG, "prompt": f"number {i}", "max_tokens": 300, "stream": False}))
        eventually(lambda: slow.engine.stats().num_running == 8)
        for sock in socks[::2]:
            sock.close()
        kept = [json.loads(read_answer(sock)[1].partition(b"\r\n\r\n")[2]) for sock in socks[1::2]]
    assert all(len(answer["choices"][0]["text"]) == 300 for answer in kept)
    slow.wait_idle()


def test_storm_of_cancellations(slow: Live) -> None:
    for round_ in range(5):
        socks = [slow.connect() for _ in range(20)]
        for sock in socks:
            sock.sendall(
                request(TEXT, {**LONG, "prompt": [f"{round_}", "x"], "n": 2, "stream": round_ % 2 == 0})
            )
        time.sleep(0.01 * round_)
        for sock in socks:
            sock.close()
    slow.wait_idle()
    assert slow.engine.is_healthy


def test_a_reader_that_stops_is_cut_off() -> None:
    """The server's write buffer is bounded; a client that reads nothing has its request aborted."""
    with serving({"max_model_len": 60_000, "num_blocks": 4096}, write_timeout_s=0.5) as live:
        canary = live.canary()
        with live.connect(receive_buffer=4096) as sock:
            body = {**LONG, "max_tokens": 50_000, "logprobs": 20, "stream": True}
            sock.sendall(request(TEXT, body))
            eventually(lambda: live.engine.stats().num_running == 1)
            live.wait_idle(15)
            eventually(lambda: not live.server.server_state.connections)
        text = live.service.metrics.text().decode()
        assert "ridgeline_http_disconnects_total 1.0" in text
        assert live.canary() == canary


def test_metrics_tell_of_those_who_left(slow: Live) -> None:
    before = slow.service.metrics.disconnects
    with slow.connect() as sock:
        sock.sendall(request(TEXT, {**LONG, "stream": True}))
        sock.recv(100)
    eventually(lambda: slow.service.metrics.disconnects == before + 1)
    eventually(lambda: slow.service.metrics.http_active == 0)
