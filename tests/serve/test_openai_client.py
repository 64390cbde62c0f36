"""The official Python client as a real client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from tests.serve.serving import Live, serving

MESSAGES: list = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def keyed() -> Iterator[Live]:
    with serving({"step_s": 0.0005}, api_keys=("sk-test",)) as live:
        yield live
        live.wait_idle()


@pytest.fixture
def client(keyed: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="sk-test", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="simulated", messages=MESSAGES, max_tokens=9, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 9
    assert answer.usage.prompt_tokens_details is not None
    assert answer._request_id is not None and answer._request_id.startswith("req-")


def test_chat_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="simulated", messages=MESSAGES, max_tokens=30, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="simulated",
            messages=MESSAGES,
            max_tokens=30,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 30


def test_stream_helper(client: openai.OpenAI) -> None:
    """The client's accumulating helper: it needs every chunk to be well-formed."""
    with client.chat.completions.stream(
        model="simulated", messages=MESSAGES, max_tokens=99, stop=" ", logprobs=True, top_logprobs=1
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and kinds[-1] != "error"
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].logprobs is not None and final.choices[0].logprobs.content


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="simulated", messages=MESSAGES, max_tokens=2, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    entry = answer.choices[0].logprobs.content[0]
    assert len(entry.top_logprobs) == 3 and entry.bytes is not None


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="simulated", prompt=["a", "b"], max_tokens=5, n=2, echo=True, logprobs=1, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[2].text.startswith("b")
    assert answer.choices[0].logprobs is not None
    pieces = client.completions.create(
        model="simulated", prompt="a", max_tokens=5, stream=True, temperature=0
    )
    whole = client.completions.create(model="simulated", prompt="a", max_tokens=5, temperature=0)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_extra_fields(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="simulated", prompt="a", max_tokens=5, extra_body={"top_k": 3, "min_p": 0.1, "ignore_eos": True}
    )
    assert answer.choices[0].text


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["simulated"]
    assert client.models.retrieve("simulated").owned_by == "ridgeline"


def test_errors_have_their_classes(client: openai.OpenAI, keyed: Live) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="simulated", messages=MESSAGES, n=1000)
    assert bad.value.param == "n"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="simulated", prompt="x" * 4000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=MESSAGES)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_closing_a_stream_frees_it(client: openai.OpenAI, keyed: Live) -> None:
    stream = client.chat.completions.create(
        model="simulated", messages=MESSAGES, max_tokens=1900, stream=True
    )
    next(iter(stream))
    stream.close()
    keyed.wait_idle(5)


async def test_many_at_once(keyed: Live) -> None:
    async with openai.AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key="sk-test", max_retries=0) as client:

        async def ask(i: int, stream: bool) -> str:
            asked = {"model": "simulated", "prompt": f"number {i}", "max_tokens": 40, "temperature": 0}
            if not stream:
                return (await client.completions.create(**asked)).choices[0].text
            pieces = await client.completions.create(**asked, stream=True)
            return "".join([piece.choices[0].text async for piece in pieces])

        whole = await asyncio.gather(*(ask(i, False) for i in range(24)))
        streamed = await asyncio.gather(*(ask(i, True) for i in range(24)))
    assert whole == streamed
    assert len(set(whole)) == 24
