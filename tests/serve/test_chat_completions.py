from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.serve.serving import serving, stream

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


def chat(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = http.post(
        "/v1/chat/completions", json={"messages": MESSAGES, "temperature": 0, "max_tokens": 12, **body}
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def content(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_shape(http: httpx.Client) -> None:
    answer = chat(http)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] == "length"
    rendered = "<|system|>be brief\n<|user|>hello\n<|assistant|>"
    assert answer["usage"]["prompt_tokens"] == len(rendered)
    same = http.post("/v1/completions", json={"prompt": rendered, "temperature": 0, "max_tokens": 12}).json()
    assert same["choices"][0]["text"] == content(answer)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"max_tokens": 1},
        {"n": 3, "temperature": 1, "seed": 2},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": "e"},
    ],
)
def test_stream_equals_whole(http: httpx.Client, body: dict[str, Any]) -> None:
    whole = chat(http, **body)
    asked = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12, **body}
    chunks = stream(http, "/v1/chat/completions", {**asked, "stream_options": {"include_usage": True}})
    usage = chunks.pop()["usage"]
    for key in ("prompt_tokens", "completion_tokens"):
        assert usage[key] == whole["usage"][key]
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"]:
            told = [entry for c in mine if c["logprobs"] for entry in c["logprobs"]["content"]]
            assert told == choice["logprobs"]["content"]


def test_without_usage_no_chunk_speaks_of_it(http: httpx.Client) -> None:
    chunks = stream(http, "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3})
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_logprobs(http: httpx.Client) -> None:
    logprobs = chat(http, logprobs=True, top_logprobs=2, max_tokens=3)["choices"][0]["logprobs"]["content"]
    assert len(logprobs) == 3
    for entry in logprobs:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 2
    assert (
        chat(http, logprobs=True, max_tokens=1)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    )


def test_parts_are_text(http: httpx.Client) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    split = chat(http, messages=[MESSAGES[0], {"role": "user", "content": parts}])
    joined = chat(http, messages=[MESSAGES[0], {"role": "user", "content": "hel\nlo"}])
    assert content(split) == content(joined)


def test_developer_is_system(http: httpx.Client) -> None:
    developer = [{"role": "developer", "content": "be brief"}, MESSAGES[1]]
    assert content(chat(http, messages=developer)) == content(chat(http))


def test_max_completion_tokens(http: httpx.Client) -> None:
    answer = chat(http, max_tokens=None, max_completion_tokens=7)
    assert len(content(answer)) == 7


def test_unicode_arrives_whole(http: httpx.Client) -> None:
    raw = json.dumps({"messages": [{"role": "user", "content": "\u2028 \U0001f600 \x00"}], "max_tokens": 4})
    answer = http.post(
        "/v1/chat/completions", content=raw, headers={"content-type": "application/json; charset=UTF-8"}
    )
    assert answer.status_code == 200


def test_defaults_pass(http: httpx.Client) -> None:
    plain = content(chat(http))
    everything = chat(
        http,
        tools=[],
        functions=[],
        tool_choice="none",
        function_call="none",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        modalities=["text"],
        audio=None,
        prediction=None,
        web_search_options=None,
        reasoning_effort=None,
        verbosity="medium",
        service_tier="auto",
        store=False,
        metadata={"k": "v"},
        user="u",
        safety_identifier="s",
        prompt_cache_key="p",
        logit_bias=None,
        top_logprobs=None,
        n=1,
        stream=False,
    )
    assert content(everything) == plain


def test_prompt_logprobs(http: httpx.Client) -> None:
    answer = chat(http, prompt_logprobs=0, max_tokens=1)
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]


def test_model_without_template_cannot_chat() -> None:
    with serving({"template": None}) as live:
        answer = httpx.post(f"{live.url}/v1/chat/completions", json={"messages": MESSAGES})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "messages"
        assert live.canary()


def test_names_where_the_template_has_a_place() -> None:
    template = "{% for m in messages %}{{ m.name }}:{{ m.content }}\n{% endfor %}"
    with serving({"template": template}) as live, httpx.Client(base_url=live.url) as http:
        asked = [{"role": "user", "content": "hello", "name": "ann"}]
        answer = chat(http, messages=asked)
        assert answer["usage"]["prompt_tokens"] == len("ann:hello\n")
