"""Keys, loading, overload, faults and the end of a server."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ridgeline.engine.async_engine import AsyncEngine
from ridgeline.engine.errors import ConfigError, ModelNotFound
from ridgeline.serve import page
from ridgeline.serve.app import ROUTES
from ridgeline.serve.gate import Keys
from ridgeline.serve.options import ServerOptions
from tests.serve.engines import make_engine
from tests.serve.serving import Live, events, eventually, read_answer, request, running, serving, stream

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = {"prompt": "long", "max_tokens": 1900, "temperature": 0, "ignore_eos": True}


# -- keys ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def guarded() -> Iterator[Live]:
    with serving(api_keys=("sk-one", "sk-two")) as live:
        yield live


PATHS = [*(path.replace("{model:path}", "simulated") for _, path, _ in ROUTES), "/nope"]


@pytest.mark.parametrize("path", PATHS)
def test_every_route_but_health_needs_a_key(guarded: Live, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS", "HEAD"):
        answer = httpx.request(method, guarded.url + path)
        if path == "/health":
            assert answer.status_code in (200, 405)
            continue
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic" if path == "/" else "Bearer")
        if method != "HEAD":
            assert answer.json()["error"]["code"] == "invalid_api_key"


def _basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize("value", ["Bearer sk-one", "bearer sk-two", "Bearer  sk-one", _basic("sk-one")])
def test_keys_open(guarded: Live, value: str) -> None:
    assert httpx.get(guarded.url + "/v1/models", headers={"authorization": value}).status_code == 200


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer sk-on", "Bearer sk-onee", "Bearer SK-ONE", "sk-one", "Token sk-one",
     "Basic !", _basic(""), _basic("sk"), "Bearer sk-one sk-two", "Bearer " + "x" * 10_000],
)  # fmt: skip
def test_other_keys_do_not(guarded: Live, value: str) -> None:
    assert httpx.get(guarded.url + "/v1/models", headers={"authorization": value}).status_code == 401


def test_two_keys_at_once_do_not(guarded: Live) -> None:
    headers = [("authorization", "Bearer wrong"), ("authorization", "Bearer sk-one")]
    assert httpx.get(guarded.url + "/v1/models", headers=headers).status_code == 401


def test_every_digest_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant time: the number of comparisons does not depend on which key is right."""
    calls = []

    def compare(a: bytes, b: bytes) -> bool:
        calls.append(len(a))
        return a == b

    monkeypatch.setattr("ridgeline.serve.gate.hmac.compare_digest", compare)
    keys = Keys(("a", "b", "c"))
    for given in ("Bearer a", "Bearer c", "Bearer none", "Bearer " + "x" * 999):
        calls.clear()
        keys.accept(given)
        assert calls == [32, 32, 32]


def test_keys_guard_before_the_body(guarded: Live) -> None:
    status, answer = guarded.talk(request(TEXT, b"not json"))
    assert status == 401
    assert b"invalid_api_key" in answer


def test_options_are_checked() -> None:
    for bad in (
        {"port": 70_000},
        {"max_body_bytes": 0},
        {"api_keys": ("",)},
        {"api_keys": ("a b",)},
        {"log_level": "loud"},
    ):
        with pytest.raises(ConfigError) as caught:
            ServerOptions(**bad)  # type: ignore[arg-type]
        assert caught.value.field in bad


def test_cors_is_off_unless_asked_for() -> None:
    preflight = {"origin": "http://there", "access-control-request-method": "POST"}
    with serving() as live:
        answer = httpx.options(live.url + CHAT, headers=preflight)
        assert answer.status_code == 405
        assert "access-control-allow-origin" not in answer.headers
    with serving(cors_origins=("http://there",)) as live:
        answer = httpx.options(live.url + CHAT, headers=preflight)
        assert answer.headers["access-control-allow-origin"] == "http://there"
        other = httpx.options(live.url + CHAT, headers={**preflight, "origin": "http://elsewhere"})
        assert "access-control-allow-origin" not in other.headers


def test_served_names() -> None:
    with (
        serving(served_model_names=("first", "second/name")) as live,
        httpx.Client(base_url=live.url) as http,
    ):
        assert [card["id"] for card in http.get("/v1/models").json()["data"]] == ["first", "second/name"]
        assert http.get("/v1/models/second/name").json()["id"] == "second/name"
        body = {"prompt": "a", "max_tokens": 1}
        assert http.post(TEXT, json=body).json()["model"] == "first"
        assert http.post(TEXT, json={**body, "model": "second/name"}).json()["model"] == "second/name"
        assert http.post(TEXT, json={**body, "model": "simulated"}).status_code == 404
        assert 'model_name="first"' in http.get("/metrics").text


# -- small routes ----------------------------------------------------------------------------------
def test_small_routes(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.head("/health").status_code == 200
    assert http.get("/ready").json() == {"status": "ready"}
    assert http.get("/version").json()["version"]
    config = http.get("/v1/engine/config").json()
    assert config["config"]["block_size"] == 16
    assert config["stats"]["num_blocks"] == 512


def test_page_is_self_contained(http: httpx.Client) -> None:
    answer = http.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "http://" not in answer.text.replace("http://www.w3.org", "")
    assert "https://" not in answer.text
    assert answer.text.count("<script>") == answer.text.count("<style>") == 1
    assert " style=" not in answer.text and " onclick=" not in answer.text


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")
def test_page_chats_and_shows_gauges(live: Live) -> None:
    """The page's own script, over a few lines that stand in for a browser's DOM."""
    script = Path(__file__).with_name("page_dom.js")
    source = Path(page.__file__).parent / "web" / "page.js"
    done = subprocess.run(["node", script, source, live.url], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["turns"][0] == {"class": "turn user", "text": "hello there"}
    assert seen["turns"][1]["class"] == "turn assistant" and len(seen["turns"][1]["text"]) == 40
    assert seen["model"] == "simulated" and seen["state"] == "ready"
    assert "tokens/s" in seen["timing"]
    assert int(seen["gauges"]["tokens generated"].replace(",", "")) >= 40


def test_metrics_follow_the_requests(http: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name + "{")]
        return float(lines[0].rpartition(" ")[2])

    before = value("vllm:generation_tokens_total"), value("ridgeline_inter_token_seconds_count")
    http.post(TEXT, json={"prompt": "a", "max_tokens": 11, "ignore_eos": True}).raise_for_status()
    assert value("vllm:generation_tokens_total") - before[0] == 11
    assert value("ridgeline_inter_token_seconds_count") - before[1] == 10
    assert value("vllm:num_requests_running") == 0
    assert 'route="/v1/completions"' in http.get("/metrics").text


def test_the_event_loop_never_waits_for_a_step() -> None:
    """The executor is held in the middle of a step; every other route still answers."""
    with serving() as live, httpx.Client(base_url=live.url, timeout=5) as http:
        live.executor.running.clear()
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(live.url + TEXT, json={"prompt": "a"}))
        )
        asking.start()
        eventually(lambda: live.num_live() == 1)
        for path in ("/health", "/ready", "/metrics", "/v1/models", "/"):
            started = time.monotonic()
            assert http.get(path).status_code == 200
            assert time.monotonic() - started < 2
        live.executor.running.set()
        asking.join(10)
        assert answers[0].status_code == 200


# -- loading ---------------------------------------------------------------------------------------
def test_listens_while_it_loads() -> None:
    engine, _ = make_engine()
    loaded = threading.Event()

    def load() -> AsyncEngine:
        loaded.wait(10)
        return engine

    with running(load) as server, httpx.Client(base_url=server.address) as http:
        assert http.get("/health").status_code == 200
        for answer in (http.get("/ready"), http.post(TEXT, json={"prompt": "a"}), http.get("/v1/models")):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
        assert http.get("/metrics").status_code == 200
        loaded.set()
        eventually(lambda: http.get("/ready").status_code == 200)
        assert http.post(TEXT, json={"prompt": "a"}).status_code == 200


def test_what_cannot_be_loaded_ends_the_server() -> None:
    def load() -> AsyncEngine:
        raise ModelNotFound("no such model")

    with running(load) as server:
        eventually(lambda: server.load_error is not None)
        assert isinstance(server.load_error, ModelNotFound)


# -- overload and faults ---------------------------------------------------------------------------
def test_a_full_queue_answers_429() -> None:
    with (
        serving({"max_num_seqs": 2, "max_queue": 3, "step_s": 0.005}) as live,
        contextlib.ExitStack() as stack,
    ):
        socks = [stack.enter_context(live.connect()) for _ in range(5)]
        for sock in socks:
            sock.sendall(request(TEXT, {**LONG, "max_tokens": 100}))
        eventually(lambda: live.num_live() == 5)
        with httpx.Client(base_url=live.url) as http:
            for path, body in (
                (TEXT, {"prompt": "a"}),
                (CHAT, {"messages": [{"role": "user", "content": "a"}]}),
            ):
                for streamed in (False, True):
                    answer = http.post(path, json={**body, "stream": streamed})
                    assert answer.status_code == 429
                    assert int(answer.headers["retry-after"]) >= 1
                    assert answer.json()["error"]["code"] == "engine_overloaded"
                    assert answer.json()["error"]["type"] == "rate_limit_error"
            assert http.get("/health").status_code == http.get("/ready").status_code == 200
            assert http.get("/metrics").status_code == 200
        assert all(read_answer(sock)[0] == 200 for sock in socks)
        live.wait_idle()
        assert live.canary()


def test_a_list_of_prompts_enters_whole_or_not_at_all() -> None:
    with serving({"max_num_seqs": 2, "max_queue": 3, "step_s": 0.001}) as live:
        answer = httpx.post(live.url + TEXT, json={"prompt": ["a"] * 20, "max_tokens": 500})
        assert answer.status_code == 429
        live.wait_idle()


def test_a_failed_step_is_a_500_and_no_more() -> None:
    with serving({"step_s": 0.001}) as live, httpx.Client(base_url=live.url, timeout=10) as http:
        canary = live.canary()
        live.executor.fault = "secret: CUDA error at 0x7fff1234"
        answer = http.post(TEXT, json={"prompt": "a"})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_error"
        assert "secret" not in answer.text and "0x7f" not in answer.text
        live.executor.fault = None
        live.wait_idle()
        assert live.canary() == canary
        assert "ridgeline_failed_steps_total" in http.get("/metrics").text


def test_a_failure_in_mid_stream_is_an_error_event() -> None:
    with serving({"step_s": 0.002}) as live, httpx.Client(base_url=live.url, timeout=10) as http:
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1000, "stream": True}
        with http.stream("POST", CHAT, json=body) as answer:
            lines = answer.iter_lines()
            for line in lines:
                if '"content":' in line:
                    break
            live.executor.fault = "broken"
            rest = events(lines)
        assert rest[-1]["error"]["code"] == "engine_error"
        live.executor.fault = None
        live.wait_idle()
        assert live.canary()


def test_a_dead_engine_is_not_live() -> None:
    with serving() as live, httpx.Client(base_url=live.url, timeout=10) as http:

        def fail(plan: Any) -> None:
            raise RuntimeError("the executor is gone")

        live.executor.submit = fail  # type: ignore[method-assign]
        assert http.post(TEXT, json={"prompt": "a"}).status_code == 500
        eventually(lambda: http.get("/health").status_code == 503)
        assert http.get("/ready").status_code == 503
        assert http.post(TEXT, json={"prompt": "a"}).status_code == 503


def test_preempted_answers_are_the_same() -> None:
    """A pool too small for all: requests are preempted and resumed, and nobody can tell."""
    prompts = [f"prompt number {i}" for i in range(12)]
    body = {"prompt": prompts, "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    with serving() as live:
        want = httpx.post(live.url + TEXT, json=body, timeout=30).json()["choices"]
    with serving({"num_blocks": 40}) as live:
        have = httpx.post(live.url + TEXT, json=body, timeout=30).json()["choices"]
        assert live.service.metrics.engine is not None
        assert live.service.metrics.engine.preemptions > 0
    assert [choice["text"] for choice in have] == [choice["text"] for choice in want]


# -- the end ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def process(engine: dict[str, Any], **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    module = "tests.serve.simulated_server"
    command = [sys.executable, "-m", module, json.dumps(engine), json.dumps(options)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": ""},
        cwd=Path(__file__).parents[2],
    ) as child:
        assert child.stdout is not None
        try:
            address = child.stdout.readline().strip()
            assert address.startswith("http://"), child.stderr.read() if child.stderr else ""
            yield child, address
        finally:
            if child.poll() is None:
                child.kill()


def _ask_in_thread(address: str, body: dict[str, Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=30) as http:
            answers.extend(stream(http, TEXT, body))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def _wait_running(address: str) -> None:
    def is_running() -> bool:
        text = httpx.get(address + "/metrics").text
        return any(
            line.startswith("vllm:num_requests_running{") and line.endswith(" 1.0")
            for line in text.splitlines()
        )

    eventually(is_running)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_finish(sig: signal.Signals) -> None:
    with process({"step_s": 0.005}, drain_timeout_s=20) as (child, address):
        thread, answers = _ask_in_thread(address, {**LONG, "max_tokens": 200})
        _wait_running(address)
        with httpx.Client(base_url=address) as kept:
            kept.get("/health")
            child.send_signal(sig)
            eventually(lambda: _refuses(address))
        thread.join(20)
        assert "".join(chunk["choices"][0]["text"] for chunk in answers if chunk["choices"]).__len__() == 200
        assert answers[-1]["choices"][0]["finish_reason"] == "length"
        assert child.wait(10) == 0
        assert child.stderr is not None and "Traceback" not in child.stderr.read()


def _refuses(address: str) -> bool:
    try:
        httpx.get(address + "/health")
    except httpx.TransportError:
        return True
    return False


def test_the_drain_has_an_end() -> None:
    with process({"step_s": 0.02}, drain_timeout_s=0.5) as (child, address):
        thread, answers = _ask_in_thread(address, LONG)
        _wait_running(address)
        started = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        assert time.monotonic() - started < 6
        thread.join(10)
        assert answers[-1]["error"]["code"] == "request_aborted"


def test_a_second_signal_does_not_wait() -> None:
    with process({"step_s": 0.02}, drain_timeout_s=60) as (child, address):
        thread, _ = _ask_in_thread(address, LONG)
        _wait_running(address)
        started = time.monotonic()
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        assert time.monotonic() - started < 6
        thread.join(10)


def test_draining_is_said() -> None:
    with serving({"step_s": 0.005}, drain_timeout_s=5.0) as live, contextlib.ExitStack() as stack:
        busy = stack.enter_context(live.connect())
        busy.sendall(request(TEXT, {**LONG, "max_tokens": 300}))
        eventually(lambda: live.num_live() == 1)
        http = stack.enter_context(httpx.Client(base_url=live.url))
        live.service.draining = True
        assert http.get("/health").status_code == 200
        assert http.get("/ready").status_code == 503
        answer = http.post(TEXT, json={"prompt": "a"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "server_draining"
        assert read_answer(busy)[0] == 200
