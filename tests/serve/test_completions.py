from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serve.serving import stream


def complete(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={"prompt": "hello", "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def text(answer: dict[str, Any], i: int = 0) -> str:
    return str(answer["choices"][i]["text"])


def test_shape(http: httpx.Client) -> None:
    answer = complete(http)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "simulated"
    assert answer["id"].startswith("cmpl-")
    assert len(text(answer)) == 16, "OpenAI's default of max_tokens"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 16,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"max_tokens": 1},
        {"prompt": ["a", "b", "hello"], "max_tokens": 9},
        {"prompt": [[72, 75], [68]], "max_tokens": 5},
        {"prompt": [72, 75], "n": 3, "temperature": 1, "seed": 4},
        {"echo": True},
        {"echo": True, "logprobs": 2, "prompt": "héllo wörld"},
        {"logprobs": 0, "max_tokens": 4},
        {"prompt": ["a", "b"], "n": 2, "echo": True, "logprobs": 1, "seed": 1},
    ],
)
def test_stream_equals_whole(http: httpx.Client, body: dict[str, Any]) -> None:
    whole = complete(http, **body)
    chunks = stream(
        http,
        "/v1/completions",
        {"prompt": "hello", "temperature": 0, **body, "stream_options": {"include_usage": True}},
    )
    last = chunks.pop()
    assert last["choices"] == []
    for key in ("prompt_tokens", "completion_tokens"):
        assert last["usage"][key] == whole["usage"][key]
    assert all(chunk["usage"] is None for chunk in chunks)
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        if choice["logprobs"]:
            for key, values in choice["logprobs"].items():
                assert [v for c in mine if c["logprobs"] for v in c["logprobs"][key]] == values


def test_list_of_prompts_answers_in_order(http: httpx.Client) -> None:
    answer = complete(http, prompt=["one", "two", "one"], max_tokens=12)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert text(answer, 0) == text(answer, 2) == text(complete(http, prompt="one", max_tokens=12))
    assert text(answer, 0) != text(answer, 1)
    assert answer["usage"]["prompt_tokens"] == 9


def test_token_ids_are_the_text(http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"prompt": "hello"}).json()["tokens"]
    assert text(complete(http, prompt=ids)) == text(complete(http))
    assert text(complete(http, prompt=[ids, ids]), 1) == text(complete(http))


def test_n_counts_the_prompt_once(http: httpx.Client) -> None:
    answer = complete(http, n=4, temperature=1, seed=3, max_tokens=20)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in answer["choices"]}) > 1
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["usage"]["completion_tokens"] == 80


def test_seed_repeats(http: httpx.Client) -> None:
    first = text(complete(http, temperature=1, seed=11))
    assert first == text(complete(http, temperature=1, seed=11))
    assert first != text(complete(http, temperature=1, seed=12))


def test_stop_string(http: httpx.Client) -> None:
    whole = text(complete(http, max_tokens=60))
    stop = whole[10:12]
    answer = complete(http, max_tokens=60, stop=stop)
    assert text(answer) == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["stop_reason"] == stop
    kept = complete(http, max_tokens=60, stop=[stop], include_stop_str_in_output=True)
    assert text(kept) == whole[: whole.index(stop) + 2]
    chunks = stream(
        http, "/v1/completions", {"prompt": "hello", "temperature": 0, "max_tokens": 60, "stop": stop}
    )
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text(answer)


def test_logprobs(http: httpx.Client) -> None:
    logprobs = complete(http, logprobs=3, max_tokens=6)["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 6
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert all(len(top) == 3 for top in logprobs["top_logprobs"])
    assert complete(http, max_tokens=2)["choices"][0]["logprobs"] is None


def test_echo_with_logprobs(http: httpx.Client) -> None:
    choice = complete(http, echo=True, logprobs=1, max_tokens=3)["choices"][0]
    assert choice["text"].startswith("hello")
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["token_logprobs"][0] is None
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["text_offset"] == list(range(8))
    assert "prompt_logprobs" not in choice


def test_bytes_of_a_character_are_named(http: httpx.Client) -> None:
    choice = complete(http, prompt="é", echo=True, logprobs=1, max_tokens=1)["choices"][0]
    assert choice["logprobs"]["tokens"][1] == "bytes:\\xa9"


def test_prompt_logprobs(http: httpx.Client) -> None:
    choice = complete(http, prompt_logprobs=1, max_tokens=1)["choices"][0]
    assert choice["prompt_logprobs"][0] is None
    assert len(choice["prompt_logprobs"]) == 5
    (entry,) = choice["prompt_logprobs"][1].values()
    assert entry["decoded_token"] == "e"
    assert entry["rank"] == 1


def test_cached_tokens_are_told(http: httpx.Client) -> None:
    prompt = "a prompt that is longer than a few blocks of the cache, so that a prefix of it is kept"
    complete(http, prompt=prompt)
    assert complete(http, prompt=prompt)["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64
    salted = complete(http, prompt=prompt, cache_salt="tenant")
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_defaults_and_labels_pass(http: httpx.Client) -> None:
    plain = text(complete(http))
    labelled = complete(
        http,
        n=1,
        best_of=1,
        suffix=None,
        user="someone",
        metadata={"a": "b"},
        logit_bias={},
        stop=None,
        stream=False,
        priority=3,
        presence_penalty=0,
        model="simulated",
    )
    assert text(labelled) == plain
