"""The whole stack, tensors included: the default model behind the real server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from ridgeline.engine.async_engine import AsyncEngine
from ridgeline.engine.options import EngineOptions
from tests.serve.serving import eventually, running


@pytest.fixture(scope="module")
def url(default_model_path: Path) -> Iterator[str]:
    options = EngineOptions(model=str(default_model_path), num_blocks=1024, served_model_name="default")
    with running(lambda: AsyncEngine.from_options(options)) as server:
        eventually(lambda: server.service.state() == "ready", 60)
        yield server.address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_it_knows_paris(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=30,
        temperature=0,
    )
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"


def test_stream_equals_whole(client: openai.OpenAI) -> None:
    asked = {
        "model": "default",
        "prompt": "In Japanese, 'good morning' is written",
        "max_tokens": 60,
        "temperature": 0.8,
        "seed": 5,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.completions.create(**asked)
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert "\ufffd" not in "".join(piece.choices[0].text for piece in pieces[:-1])


def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="default",
        prompt="The capital of France is Paris",
        max_tokens=1,
        temperature=0,
        echo=True,
        logprobs=2,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.token_logprobs is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    by_token = dict(zip(logprobs.tokens, logprobs.token_logprobs))
    assert by_token[" Paris"] is not None and by_token[" Paris"] > -1
    assert logprobs.token_logprobs[0] is None


def test_a_list_of_prompts_answers_as_each_alone(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "def add(a, b):", "The capital of Italy is"]
    together = client.completions.create(model="default", prompt=prompts, max_tokens=12, temperature=0)
    for prompt, choice in zip(prompts, together.choices):
        alone = client.completions.create(model="default", prompt=prompt, max_tokens=12, temperature=0)
        assert alone.choices[0].text == choice.text


def test_leaving_gives_the_blocks_back(url: str) -> None:
    def held() -> float:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith("ridgeline_kv_usage_ratio{"))

    body = {"prompt": "Tell me everything.", "max_tokens": 3000, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as answer:
        lines = answer.iter_lines()  # kept: letting it go would close the connection
        next(lines)
        eventually(lambda: held() > 0)
    eventually(lambda: held() == 0, 5)
    with contextlib.closing(httpx.Client()) as http:
        assert http.get(f"{url}/ready").status_code == 200
