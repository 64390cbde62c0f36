"""Contract 5: a stream, however it is cut, says what the whole answer says."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline import LLM, SamplingParams
from ridgeline.engine.async_engine import AsyncEngine
from ridgeline.engine.detokenizing import Detokenizer
from ridgeline.engine.output_processor import OutputBuilder, join_deltas
from ridgeline.engine.outputs import Completion, CompletionDelta
from tests.scripted_engine import byte_tokenizer, says, scripted_parts

TOKENIZER = byte_tokenizer()

texts = st.text("aab\né🙂", max_size=40)
stops = st.lists(st.text("ab\né🙂", min_size=1, max_size=4), max_size=3, unique=True)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, SamplingParams]:
    text = draw(texts)
    length = len(text.encode())
    params = SamplingParams(
        max_tokens=draw(st.integers(1, length + 2)),
        stop=tuple(draw(stops)),
        include_stop=draw(st.booleans()),
        stop_token_ids=tuple(draw(st.sets(st.sampled_from([10, 98]), max_size=1))),
        ignore_eos=draw(st.booleans()),
        skip_special_tokens=draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, 0, 2])),
        prompt_logprobs=draw(st.sampled_from([None, 1])),
        n=draw(st.integers(1, 2)),
    )
    return text, params


def as_completion(delta: CompletionDelta) -> Completion:
    assert delta.finish_reason is not None
    return Completion(
        delta.index,
        delta.text,
        delta.token_ids,
        delta.finish_reason,
        delta.stop_reason,
        delta.logprobs,
        delta.error,
    )


@settings(deadline=None)
@given(answer=answers(), cuts=st.lists(st.integers(0, 60), max_size=8))
def test_stream_equals_whole_under_every_split(answer: tuple[str, SamplingParams], cuts: list[int]) -> None:
    """Whole = generate; stream = deltas one by one; cut = deltas merged between arbitrary points."""
    text, params = answer
    whole = LLM(parts=scripted_parts(says(text))[0]).generate("ask", params)[0]
    deltas = list(LLM(parts=scripted_parts(says(text))[0]).stream("ask", params))
    for completion in whole.completions:
        mine = [delta for delta in deltas if delta.index == completion.index]
        edges = sorted({0, len(mine), *(cut for cut in cuts if cut < len(mine))})
        parts = [join_deltas(mine[a:b]) for a, b in itertools.pairwise(edges)]
        assert as_completion(join_deltas(parts)) == completion
        assert [delta.finish_reason is not None for delta in mine] == [False] * (len(mine) - 1) + [True]
    assert next((d.prompt_logprobs for d in deltas if d.prompt_logprobs), None) == whole.prompt_logprobs
    sums = sum(delta.usage.num_generated_tokens for delta in deltas if delta.usage is not None)
    assert sums == whole.usage.num_generated_tokens == sum(len(c.token_ids) for c in whole.completions)


@settings(deadline=None)
@given(answer=answers())
def test_the_text_is_the_decoded_tokens(answer: tuple[str, SamplingParams]) -> None:
    """Without a stop that is cut off, text = decode(token_ids), less a final stop token."""
    text, params = answer
    whole = LLM(parts=scripted_parts(says(text))[0]).generate("ask", params)[0]
    for completion in whole.completions:
        tokens = completion.token_ids
        stopped_by_token = completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)
        if stopped_by_token and not params.include_stop:
            tokens = tokens[:-1]
        decoded = TOKENIZER.decode(tokens, skip_special_tokens=params.skip_special_tokens)
        if isinstance(completion.stop_reason, str):
            assert completion.stop_reason in decoded
            cut = decoded.index(completion.stop_reason) + len(completion.stop_reason) * params.include_stop
            assert completion.text == decoded[:cut]
        else:
            assert completion.text == decoded
            assert not any(stop in decoded for stop in params.stop)


@settings(deadline=None)
@given(text=texts, stop=stops, width=st.integers(1, 5))
def test_tokens_a_step_make_no_difference(text: str, stop: list[str], width: int) -> None:
    """Several tokens at once (speculation) end where one at a time would."""
    data = text.encode()
    wide, narrow = (Detokenizer(TOKENIZER.token_bytes, stop) for _ in range(2))
    one = "".join(narrow.feed([byte]) for byte in data) + narrow.flush()
    many = "".join(wide.feed(data[i : i + width]) for i in range(0, len(data), width)) + wide.flush()
    assert (many, wide.matched_stop) == (one, narrow.matched_stop)


@settings(deadline=None, max_examples=25)
@given(answer=answers(), pauses=st.lists(st.booleans(), min_size=60, max_size=60))
def test_the_async_stream_equals_the_offline_whole(
    answer: tuple[str, SamplingParams], pauses: list[bool]
) -> None:
    text, params = answer
    whole = LLM(parts=scripted_parts(says(text))[0]).generate("ask", params)[0]

    async def streamed() -> Any:
        engine = AsyncEngine(scripted_parts(says(text))[0])
        await engine.start()
        try:
            generation = await engine.submit("ask", params)
            builder = OutputBuilder(generation.job)
            count = 0
            async for delta in generation:
                builder.add(delta)
                if pauses[count % len(pauses)]:
                    await asyncio.sleep(0.001)  # a reader that lags gets merged deltas
                count += 1
            return builder.build()
        finally:
            await engine.close()

    output = asyncio.run(streamed())
    assert output.completions == whole.completions
    assert output.usage == whole.usage
    assert output.prompt_logprobs == whole.prompt_logprobs
