"""Requests that must be refused, by the real server, with a status, a field and OpenAI's shape.

After the whole barrage the `live` fixture asks the canary again and counts the blocks.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.serve.serving import JSON, Live

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
NO_TEXT_ONLY = [
    {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
    {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "video_url", "video_url": {"url": "http://x/"}},
    {"type": "file", "file": {"file_id": "x"}},
]


def error(
    answer: httpx.Response, status: int, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Checks the shape; returns the error."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    body = answer.json()
    assert set(body) == {"error"}
    found: dict[str, Any] = body["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"]
    assert "Traceback" not in found["message"] and "ridgeline/" not in found["message"]
    assert len(found["message"]) < 600
    if param is not None:
        assert found["param"] == param, found
        assert param.split("[")[0].split(".")[0] in found["message"]
    if code is not None:
        assert found["code"] == code, found
    return found


BOTH: list[tuple[str, Any, str]] = [
    # counts
    ("n", 129, "n"),
    ("n", 10**9, "n"),
    ("n", 0, "n"),
    ("n", -1, "n"),
    ("n", 2**70, "n"),
    ("stop", ["x"] * 10**6, "stop"),
    ("stop", ["x"] * 17, "stop"),
    ("stop", "x" * 1025, "stop"),
    ("stop", "", "stop"),
    ("stop", [""], "stop"),
    ("stop", [1], "stop"),
    ("stop", {"a": 1}, "stop"),
    ("stop_token_ids", [1] * 129, "stop_token_ids"),
    ("stop_token_ids", [-1], "stop_token_ids"),
    ("stop_token_ids", [10**6], "stop_token_ids"),
    ("logit_bias", {str(i): 1 for i in range(1025)}, "logit_bias"),
    ("logit_bias", {"1": 101}, "logit_bias"),
    ("logit_bias", {"x": 1}, "logit_bias"),
    ("logit_bias", {"-1": 1}, "logit_bias"),
    ("logit_bias", {"99999999999": 1}, "logit_bias"),
    ("logit_bias", {"260": 1}, "logit_bias"),
    ("logit_bias", {"1": 1, "01": 1}, "logit_bias"),
    ("prompt_logprobs", 21, "prompt_logprobs"),
    ("prompt_logprobs", -1, "prompt_logprobs"),
    # numbers that are none, or too large
    ("max_tokens", 10**12, "max_tokens"),
    ("max_tokens", 2**31 - 1, "max_tokens"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", -5, "max_tokens"),
    ("max_tokens", True, "max_tokens"),
    ("max_tokens", 4.0, "max_tokens"),
    ("max_tokens", 4.5, "max_tokens"),
    ("max_tokens", "4", "max_tokens"),
    ("max_tokens", [4], "max_tokens"),
    ("temperature", 1e308, "temperature"),
    ("temperature", -0.1, "temperature"),
    ("temperature", True, "temperature"),
    ("temperature", "1", "temperature"),
    ("top_p", 0, "top_p"),
    ("top_p", 1.5, "top_p"),
    ("top_k", -1, "top_k"),
    ("top_k", 1.5, "top_k"),
    ("min_p", 2, "min_p"),
    ("repetition_penalty", 0, "repetition_penalty"),
    ("presence_penalty", 3, "presence_penalty"),
    ("frequency_penalty", -3, "frequency_penalty"),
    ("seed", 2**63, "seed"),
    ("seed", True, "seed"),
    ("seed", 1.5, "seed"),
    ("min_tokens", 2**40, "min_tokens"),
    ("min_tokens", -1, "min_tokens"),
    ("priority", 2**40, "priority"),
    ("cache_salt", "", "cache_salt"),
    ("cache_salt", "x" * 257, "cache_salt"),
    # wrong types
    ("stream", "yes", "stream"),
    ("stream", 1, "stream"),
    ("ignore_eos", 1, "ignore_eos"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("stream_options", "x", "stream_options"),
    ("model", 5, "model"),
    ("user", 5, "user"),
    ("user", "x" * 600, "user"),
    ("metadata", {str(i): "x" for i in range(17)}, "metadata"),
    ("metadata", {"a": 1}, "metadata"),
    # known, and not here
    ("response_format", {"type": "json_object"}, "response_format"),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "response_format",
    ),
    ("store", True, "store"),
    ("store", 0, "store"),
    ("service_tier", "flex", "service_tier"),
    ("prompt_embeds", "AAAA", "prompt_embeds"),
    ("guided_json", {}, "guided_json"),
    ("structured_outputs", {"regex": "(a+)+$"}, "structured_outputs"),
    ("n_discard", -1, "n_discard"),
    ("use_beam_search", True, "use_beam_search"),
    ("a\nb", 1, "a?b"),
    ("x" * 1000, 1, "x" * 64 + "..."),
    ("__class__", 1, "__class__"),
]

CHAT_ONLY: list[tuple[str, Any, str]] = [
    ("messages", [], "messages"),
    ("messages", "hi", "messages"),
    ("messages", [{"role": "user", "content": "x"}] * 4097, "messages"),
    ("messages", ["hi"], "messages[0]"),
    ("messages", [{"role": "user"}], "messages[0].content"),
    ("messages", [{"role": "user", "content": None}], "messages[0].content"),
    ("messages", [{"role": "user", "content": 5}], "messages[0].content"),
    ("messages", [{"role": "user", "content": []}], "messages[0].content"),
    ("messages", [{"role": "robot", "content": "x"}], "messages[0].role"),
    ("messages", [{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0].role"),
    ("messages", [{"content": "x"}], "messages[0].role"),
    ("messages", [*HI, {"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[1].tool_calls"),
    ("messages", [{"role": "user", "content": "x", "name": "bob"}], "messages[0].name"),
    ("messages", [{"role": "user", "content": "x", "extra": 1}], "messages[0].extra"),
    ("messages", [{"role": "user", "content": "x" * 4000}], "messages"),
    ("logprobs", 3, "logprobs"),
    ("top_logprobs", 2, "top_logprobs"),
    ("max_completion_tokens", 0, "max_completion_tokens"),
    ("max_completion_tokens", 2040, "max_completion_tokens"),
    ("max_completion_tokens", True, "max_completion_tokens"),
    ("tools", [{"type": "function", "function": {"name": "f"}}], "tools"),
    ("tools", {}, "tools"),
    ("tool_choice", "auto", "tool_choice"),
    ("functions", [{"name": "f"}], "functions"),
    ("function_call", {"name": "f"}, "function_call"),
    ("parallel_tool_calls", False, "parallel_tool_calls"),
    ("modalities", ["text", "audio"], "modalities"),
    ("audio", {"format": "wav", "voice": "alloy"}, "audio"),
    ("prediction", {"type": "content", "content": "x"}, "prediction"),
    ("web_search_options", {}, "web_search_options"),
    ("reasoning_effort", "high", "reasoning_effort"),
    ("verbosity", "low", "verbosity"),
    ("chat_template", "{% for i in range(10**9) %}x{% endfor %}", "chat_template"),
    ("chat_template_kwargs", {"tokenize": True}, "chat_template_kwargs"),
    ("best_of", 2, "best_of"),
    ("prompt", "x", "prompt"),
]

TEXT_ONLY: list[tuple[str, Any, str]] = [
    ("prompt", "", "prompt"),
    ("prompt", None, "prompt"),
    ("prompt", [], "prompt"),
    ("prompt", [[]], "prompt"),
    ("prompt", ["a", ""], "prompt"),
    ("prompt", ["a"] * 100_000, "prompt"),
    ("prompt", ["a"] * 1025, "prompt"),
    ("prompt", ["a", 1], "prompt"),
    ("prompt", [1, True], "prompt"),
    ("prompt", [1, 2.0], "prompt"),
    ("prompt", [260], "prompt"),
    ("prompt", [-1], "prompt"),
    ("prompt", [2**70], "prompt"),
    ("prompt", [[1], [2**31]], "prompt"),
    ("prompt", {"a": 1}, "prompt"),
    ("prompt", 5, "prompt"),
    ("prompt", "x" * 3000, "prompt"),
    ("prompt", "x" * 3_000_000, "prompt"),
    ("prompt", [1] * 1_000_000, "prompt"),
    ("prompt", "x" * 2040, "max_tokens"),
    ("logprobs", 21, "logprobs"),
    ("logprobs", -1, "logprobs"),
    ("logprobs", True, "logprobs"),
    ("best_of", 2, "best_of"),
    ("best_of", 10**9, "best_of"),
    ("suffix", "x", "suffix"),
    ("echo", "yes", "echo"),
    ("messages", HI, "messages"),
    ("max_completion_tokens", 4, "max_completion_tokens"),
]


def _id(case: tuple[str, Any, str]) -> str:
    return f"{case[0][:20]}={str(case[1])[:24]}"


@pytest.mark.parametrize("case", BOTH, ids=_id)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_field_is_refused(http: httpx.Client, path: str, case: tuple[str, Any, str]) -> None:
    field, value, param = case
    base = {"messages": HI} if path == CHAT else {"prompt": "hi"}
    error(http.post(path, json={**base, field: value}), 400, param)


@pytest.mark.parametrize("case", CHAT_ONLY, ids=_id)
def test_chat_field_is_refused(http: httpx.Client, case: tuple[str, Any, str]) -> None:
    field, value, param = case
    error(http.post(CHAT, json={"messages": HI, field: value}), 400, param)


@pytest.mark.parametrize("case", TEXT_ONLY, ids=_id)
def test_text_field_is_refused(http: httpx.Client, case: tuple[str, Any, str]) -> None:
    field, value, param = case
    error(http.post(TEXT, json={"prompt": "hi", field: value}), 400, param)


@pytest.mark.parametrize("stream", [False, True])
def test_streamed_requests_are_refused_alike(http: httpx.Client, stream: bool) -> None:
    error(http.post(CHAT, json={"messages": HI, "n": 0, "stream": stream}), 400, "n")
    error(http.post(TEXT, json={"prompt": [999], "stream": stream}), 400, "prompt")


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_prompt_logprobs_are_not_streamed(http: httpx.Client, path: str) -> None:
    base = {"messages": HI} if path == CHAT else {"prompt": "hi"}
    error(http.post(path, json={**base, "stream": True, "prompt_logprobs": 1}), 400, "prompt_logprobs")


@pytest.mark.parametrize("part", NO_TEXT_ONLY, ids=lambda part: str(part["type"]))
def test_only_text_parts(http: httpx.Client, part: dict[str, Any]) -> None:
    asked = [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]
    told = error(http.post(CHAT, json={"messages": asked}), 400, "messages[0].content[1].type")
    assert "unsupported content part" in told["message"]
    assert "169.254" not in told["message"]


def test_budget_of_sequences_and_tokens(http: httpx.Client) -> None:
    error(http.post(TEXT, json={"prompt": ["a"] * 500, "n": 100}), 400, "n")
    error(http.post(TEXT, json={"prompt": "a", "n": 128, "max_tokens": 2000}), 400)


def test_too_long_is_said_with_the_limit(http: httpx.Client) -> None:
    told = error(http.post(TEXT, json={"prompt": "x" * 5000}), 400, "prompt", "context_length_exceeded")
    assert "2048" in told["message"] and "5000" in told["message"]
    told = error(
        http.post(CHAT, json={"messages": HI, "max_tokens": 3000}),
        400,
        "max_tokens",
        "context_length_exceeded",
    )
    assert "2048" in told["message"]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"nonsense", "invalid_json"),
        (b'{"messages":', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "invalid_json"),
        (b'{"prompt":"\xff\xfe"}', "invalid_json"),
        (b'{"prompt":"\\ud83d"}', "invalid_json"),
        (b'{"prompt":"a","prompt":"b"}', "duplicate_key"),
        (b'{"prompt":"a","temperature":NaN}', "invalid_json"),
        (b'{"prompt":"a","temperature":-Infinity}', "invalid_json"),
        (b'{"prompt":"a","temperature":1e999}', "invalid_json"),
        (b'{"prompt":"a","seed":' + b"9" * 100_000 + b"}", "invalid_json"),
        (b'["a"]', None),
        (b'"a"', None),
        (b"null", None),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
def test_bodies(http: httpx.Client, path: str, raw: bytes, code: str | None) -> None:
    error(http.post(path, content=raw, headers=JSON), 400, code=code)


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
def test_query_parameters_are_not_ignored(http: httpx.Client, path: str) -> None:
    error(http.post(path, params={"temperature": "0"}, json={"prompt": "a"}), 400, "query")


def test_required_fields(http: httpx.Client) -> None:
    error(http.post(CHAT, json={}), 400, "messages", "missing_required_parameter")
    error(http.post(TEXT, json={}), 400, "prompt", "missing_required_parameter")
    error(http.post("/detokenize", json={}), 400, "tokens", "missing_required_parameter")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
def test_only_json(http: httpx.Client, kind: str) -> None:
    error(http.post(CHAT, content=b'{"messages":[]}', headers={"content-type": kind}), 415)


def test_only_utf8_and_no_encodings(http: httpx.Client) -> None:
    error(http.post(CHAT, content=b"{}", headers={"content-type": "application/json; charset=utf-16"}), 415)
    error(http.post(CHAT, content=b"{}", headers={**JSON, "content-encoding": "gzip"}), 415)


def test_size_limit(http: httpx.Client) -> None:
    body = json.dumps({"prompt": "x" * (8 * 1024 * 1024)}).encode()
    error(http.post(TEXT, content=body, headers=JSON), 413, code="body_too_large")
    chunks = (b"x" * 65536 for _ in range(200))
    error(http.post(TEXT, content=chunks, headers=JSON), 413, code="body_too_large")


def test_paths_and_methods(http: httpx.Client) -> None:
    for path in (
        "/nope",
        "/v1",
        "/v1/embeddings",
        "/docs",
        "/openapi.json",
        "/v1/chat/completions/",
        "/../etc/passwd",
    ):
        error(http.get(path), 404, code="not_found")
    for path in (CHAT, TEXT, "/tokenize"):
        answer = http.get(path)
        error(answer, 405, code="method_not_allowed")
        assert "POST" in answer.headers["allow"]
    error(http.post("/health"), 405)
    error(http.request("DELETE", "/v1/models"), 405)


def test_models(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()["data"]
    assert [card["id"] for card in listed] == ["simulated"]
    assert http.get("/v1/models/simulated").json() == listed[0]
    error(http.get("/v1/models/other"), 404, "model", "model_not_found")
    error(http.get("/v1/models/%00%ff"), 404, "model", "model_not_found")
    error(http.post(TEXT, json={"prompt": "a", "model": "gpt-4"}), 404, "model", "model_not_found")


def test_tokenize_and_back(http: httpx.Client) -> None:
    text = "héllo <eos> wörld\n"
    answer = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 2048
    assert 256 in answer["tokens"]
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}
    chat = http.post("/tokenize", json={"messages": HI}).json()
    assert chat["count"] == len("<|user|>hi\n<|assistant|>")
    assert http.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "a", "messages": HI}, "prompt"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "nope": 1}, "nope"),
        ("/tokenize", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ("/detokenize", {"tokens": [1, 260]}, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/detokenize", {"tokens": "ab"}, "tokens"),
    ],
)
def test_tokenizer_routes_refuse(http: httpx.Client, path: str, body: Any, param: str) -> None:
    error(http.post(path, json=body), 400, param)


def test_request_ids(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    drawn = {http.get("/health").headers["x-request-id"] for _ in range(5)}
    assert len(drawn) == 5
    for bad in ("a b", "x" * 129, "a\tb", "\u00e9".encode()):
        answer = http.get("/health", headers={"x-request-id": bad})
        error(answer, 400, "X-Request-Id")
        assert answer.headers["x-request-id"].startswith("req-")


def test_nothing_was_counted_as_a_server_error(live: Live, http: httpx.Client) -> None:
    lines = http.get("/metrics").text.splitlines()
    assert any(line.startswith("ridgeline_http_requests_total") and 'status="400"' in line for line in lines)
    assert not [
        line for line in lines if line.startswith("ridgeline_http_requests_total") and 'status="5' in line
    ]
    assert live.engine.is_healthy


def test_limits_on_lists_are_in_plain_words(http: httpx.Client) -> None:
    found = error(http.post("/v1/chat/completions", json={"messages": []}), 400, "messages")
    assert found["message"] == "messages: must have at least 1 item, got 0"
