from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ridgeline.core.event import Arrived, Event, Finished, StepCompleted, TokensGenerated
from ridgeline.core.request import Request
from ridgeline.engine.async_engine import AsyncEngine
from ridgeline.engine.errors import (
    ContextLengthExceeded,
    EngineClosed,
    EngineOverloaded,
    InvalidParameter,
)
from ridgeline.engine.outputs import CompletionDelta
from ridgeline.engine.sampling_params import SamplingParams
from tests.scripted_engine import EOS, ScriptedExecutor, byte_tokenizer, says, scripted_parts

HELLO = says("hello")
ENDLESS = SamplingParams(max_tokens=200, ignore_eos=True)


@asynccontextmanager
async def running(
    script: Callable[[Request, int], int] = HELLO, **changes: Any
) -> AsyncIterator[tuple[AsyncEngine, ScriptedExecutor]]:
    parts, executor = scripted_parts(script, **changes)
    engine = AsyncEngine(parts)
    await engine.start()
    try:
        yield engine, executor
    finally:
        executor.gate.set()
        await engine.close()


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        await asyncio.sleep(0.002)


def all_free(engine: AsyncEngine) -> bool:
    stats = engine.stats()
    return (
        stats.num_running == stats.num_waiting == 0
        and stats.num_free_blocks + stats.num_cached_blocks == stats.num_blocks
    )


async def test_complete() -> None:
    async with running(says("héllo")) as (engine, _):
        output = await engine.complete("ask", SamplingParams())
        (completion,) = output.completions
        assert completion.text == "héllo"
        assert completion.token_ids == (*"héllo".encode(), EOS)
        assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
        assert output.prompt_token_ids == (97, 115, 107)
        assert (output.usage.num_prompt_tokens, output.usage.num_generated_tokens) == (3, 7)
        assert output.prompt == "ask"
        await until(lambda: all_free(engine))


async def test_deltas_joined_are_the_completion() -> None:
    async with running(says("héllo🙂")) as (engine, _):
        deltas = [delta async for delta in engine.generate("ask", SamplingParams())]
        assert "".join(delta.text for delta in deltas) == "héllo🙂"
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason == "stop"
        assert deltas[-1].usage is not None


async def test_length() -> None:
    async with running() as (engine, _):
        (completion,) = (await engine.complete([1, 2], SamplingParams(max_tokens=3))).completions
        assert (completion.text, completion.finish_reason) == ("hel", "length")


async def test_max_tokens_none_goes_to_the_end_of_the_context() -> None:
    async with running(says("", then=97)) as (engine, _):
        output = await engine.complete([1] * 10, SamplingParams(max_tokens=None))
        assert output.usage.num_generated_tokens == 246


@pytest.mark.parametrize(
    ("params", "text", "reason"),
    [
        ({"stop": "l"}, "he", "l"),
        ({"stop": ("lo", "ll")}, "he", "ll"),
        ({"stop": "ll", "include_stop": True}, "hell", "ll"),
        ({"stop_token_ids": (108,)}, "he", 108),
        ({"stop_token_ids": (108,), "include_stop": True}, "hel", 108),
        ({"stop": "h", "min_tokens": 2}, "hello", None),
    ],
)
async def test_stopping(params: dict[str, Any], text: str, reason: str | int | None) -> None:
    async with running() as (engine, executor):
        (completion,) = (await engine.complete("ask", SamplingParams(**params))).completions
        assert (completion.text, completion.finish_reason, completion.stop_reason) == (text, "stop", reason)
        await until(lambda: all_free(engine))
        assert len(executor.plans) <= 6


async def test_a_stop_string_ends_the_computing_at_once() -> None:
    async with running(says("ab" * 50)) as (engine, executor):
        await engine.complete("ask", SamplingParams(stop="b", max_tokens=90))
        assert len(executor.plans) == 2


async def test_special_tokens_in_the_text_if_asked() -> None:
    async with running(says("hi", then=257)) as (engine, _):
        params = SamplingParams(max_tokens=3, skip_special_tokens=False)
        assert (await engine.complete("x", params)).completions[0].text == "hi<bos>"


async def test_n_completions_and_seeds() -> None:
    seeds: list[int] = []

    def script(request: Request, index: int) -> int:
        sampling: Any = request.sampling
        seeds.append(sampling.seed)
        return b"abc"[sampling.seed % 3] if index < 2 else EOS

    async with running(script, draw_seed=lambda: 300) as (engine, _):
        output = await engine.complete("x", SamplingParams(n=3))
        assert [c.text for c in output.completions] == ["aa", "bb", "cc"]
        assert [c.index for c in output.completions] == [0, 1, 2]
        assert output.usage.num_generated_tokens == 9
        assert set(seeds) == {300, 301, 302}
        seeds.clear()
        await engine.complete("x", SamplingParams(n=2, seed=2**63 - 1))
        assert set(seeds) == {2**63 - 1, -(2**63)}


async def test_drawn_seeds_differ() -> None:
    seeds = set()

    def script(request: Request, index: int) -> int:
        seeds.add(request.sampling.seed)  # type: ignore[attr-defined]
        return EOS

    async with running(script) as (engine, _):
        for _ in range(3):
            await engine.complete("x", SamplingParams())
    assert len(seeds) == 3


async def test_logprobs() -> None:
    async with running(says("né")) as (engine, _):
        params = SamplingParams(logprobs=2, prompt_logprobs=1)
        output = await engine.complete("ask", params)
        positions = output.completions[0].logprobs
        assert positions is not None and len(positions) == 4
        assert [p.token.raw for p in positions] == [b"n", b"\xc3", b"\xa9", b"<eos>"]
        assert positions[0].token.logprob == -ord("n") / 256
        assert [t.token_id for t in positions[0].top] == [0, 1]
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        assert [p.token.text for p in output.prompt_logprobs[1:] if p is not None] == ["s", "k"]


async def test_prompt_logprobs_over_several_chunks_arrive_once() -> None:
    async with running(max_num_batched_tokens=16) as (engine, _):
        generation = await engine.submit([5] * 100, SamplingParams(prompt_logprobs=0, n=2))
        deltas = [delta async for delta in generation]
        carrying = [delta for delta in deltas if delta.prompt_logprobs is not None]
        assert len(carrying) == 1
        assert carrying[0].index == 0
        assert generation.prompt_logprobs is not None
        assert len(generation.prompt_logprobs) == 100


@pytest.mark.parametrize(
    ("prompt", "params", "error", "param"),
    [
        ("", {}, InvalidParameter, "prompt"),
        ([], {}, InvalidParameter, "prompt"),
        ([260], {}, InvalidParameter, "prompt"),
        ([-1], {}, InvalidParameter, "prompt"),
        ([True], {}, InvalidParameter, "prompt"),
        (["a"], {}, InvalidParameter, "prompt"),
        ({"a": 1}, {}, InvalidParameter, "prompt"),
        ("a\ud800", {}, InvalidParameter, "prompt"),
        ([1] * 256, {}, ContextLengthExceeded, "prompt"),
        ([1] * 200, {"max_tokens": 57}, ContextLengthExceeded, "max_tokens"),
        ([1] * 250, {"max_tokens": None, "min_tokens": 7}, InvalidParameter, "min_tokens"),
        ("a", {"stop_token_ids": (260,)}, InvalidParameter, "stop_token_ids"),
        ("a", {"logit_bias": {260: 1.0}}, InvalidParameter, "logit_bias"),
        ("a", {"n": 25}, InvalidParameter, "n"),
    ],
)
async def test_bad_requests_are_refused_before_anything_runs(
    prompt: Any, params: dict[str, Any], error: type[InvalidParameter], param: str
) -> None:
    async with running() as (engine, executor):
        with pytest.raises(error) as refused:
            await engine.submit(prompt, SamplingParams(**{"max_tokens": 5, **params}))
        assert refused.value.param == param
        assert executor.plans == []
        assert (await engine.complete("x", SamplingParams())).completions[0].text == "hello"


async def test_context_errors_say_both_numbers() -> None:
    async with running() as (engine, _):
        with pytest.raises(ContextLengthExceeded, match=r"300 tokens.*256") as refused:
            await engine.submit([1] * 300, SamplingParams())
        assert (refused.value.num_tokens, refused.value.limit_tokens) == (300, 256)


async def test_a_hopeless_text_is_not_even_tokenized() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.encode = lambda *a: pytest.fail("tokenized")  # type: ignore[method-assign,misc]
    async with running(tokenizer=tokenizer) as (engine, _):
        with pytest.raises(ContextLengthExceeded, match="at least"):
            await engine.submit("a" * 1_000_000, SamplingParams())


async def test_long_texts_are_tokenized_off_the_event_loop() -> None:
    tokenizer = byte_tokenizer()
    threads: list[threading.Thread] = []
    encode = tokenizer.encode

    def watched(text: str, add_special_tokens: bool = True) -> list[int]:
        threads.append(threading.current_thread())
        return encode(text, add_special_tokens)[:10]

    tokenizer.encode = watched  # type: ignore[method-assign]
    tokenizer._longest = 1 << 20
    async with running(tokenizer=tokenizer) as (engine, _):
        await engine.complete("a" * 20_000, SamplingParams())
        await engine.complete("a", SamplingParams())
    assert threads[0] is not threading.main_thread()
    assert threads[1] is threading.main_thread()


async def test_request_ids() -> None:
    events: list[Event] = []
    async with running() as (engine, executor):
        engine.subscribe(events.extend)
        executor.gate.clear()
        generation = await engine.submit("x", SamplingParams(n=2), request_id="mine")
        assert generation.request_id == "mine"
        with pytest.raises(InvalidParameter, match="already under way") as refused:
            await engine.submit("x", SamplingParams(), request_id="mine")
        assert refused.value.param == "request_id"
        executor.gate.set()
        assert len([delta async for delta in generation if delta.finish_reason]) == 2
        await engine.complete("x", SamplingParams(), request_id="mine")  # free again
        await until(lambda: sum(isinstance(event, Finished) for event in events) == 3)
    arrived = [event.request_id for event in events if isinstance(event, Arrived)]
    assert arrived == ["mine-0", "mine-1", "mine"]


# -- leaving ---------------------------------------------------------------------------------------


async def test_closing_aborts_within_a_step() -> None:
    async with running(says("", then=97)) as (engine, executor):
        stream = engine.generate("x", ENDLESS)
        await anext(stream)
        executor.gate.clear()
        await stream.aclose()  # type: ignore[attr-defined]
        steps = len(executor.plans)
        executor.gate.set()
        await until(lambda: all_free(engine))
        assert len(executor.plans) <= steps + 1


async def test_cancelling_aborts() -> None:
    events: list[Event] = []
    async with running(says("", then=97)) as (engine, executor):
        engine.subscribe(events.extend)
        executor.gate.clear()
        task = asyncio.create_task(engine.complete("x", ENDLESS))
        await until(lambda: len(executor.plans) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        executor.gate.set()
        await until(lambda: all_free(engine))
    assert [event.reason for event in events if isinstance(event, Finished)] == ["abort"]


async def test_a_forgotten_generation_aborts() -> None:
    async with running(says("", then=97)) as (engine, _):
        generation = await engine.submit("x", SamplingParams(max_tokens=250, ignore_eos=True))
        await anext(generation)
        del generation
        gc.collect()
        await until(lambda: all_free(engine))


async def test_abort_spares_a_later_request_that_took_the_id_of_a_finished_completion() -> None:
    def one_ends(request: Request, index: int) -> int:
        return EOS if request.id == "r-0" and len(request.prompt) == 2 else 120

    async with running(one_ends) as (engine, executor):
        executor.gate.clear()
        first = await engine.submit("xx", SamplingParams(n=2, max_tokens=200), request_id="r")
        executor.gate.set()
        while (await anext(first)).finish_reason is None:  # r-0; r-1 goes on
            pass
        executor.gate.clear()
        second = await engine.submit("x", SamplingParams(max_tokens=200), request_id="r-0")
        engine.abort("r")
        executor.gate.set()
        reasons = [delta.finish_reason async for delta in second]
        assert reasons[-1] == "length"


async def test_abort_by_id_ends_the_stream() -> None:
    async with running(says("", then=97)) as (engine, executor):
        executor.gate.clear()
        generation = await engine.submit(
            "x", SamplingParams(n=2, max_tokens=100, ignore_eos=True), request_id="r"
        )
        engine.abort("unknown")
        engine.abort("r")
        executor.gate.set()
        reasons = [delta.finish_reason async for delta in generation if delta.finish_reason]
        assert reasons == ["abort", "abort"]


async def test_a_slow_reader_gets_merged_deltas() -> None:
    async with running(says("abcdefgh" * 20)) as (engine, _):
        generation = await engine.submit("x", SamplingParams(max_tokens=200, logprobs=0))
        await until(lambda: all_free(engine))
        await asyncio.sleep(0.01)
        assert sum(map(len, generation._pending.values())) <= 33
        deltas: list[CompletionDelta] = [delta async for delta in generation]
        assert len(deltas) == 1
        assert deltas[0].text == "abcdefgh" * 20
        assert deltas[0].logprobs is not None and len(deltas[0].logprobs) == 161
        assert deltas[0].finish_reason == "stop"


# -- the queue -------------------------------------------------------------------------------------


async def test_the_queue_is_bounded() -> None:
    async with running(says("", then=97), max_num_seqs=2, max_queue=3) as (engine, executor):
        executor.gate.clear()
        held = [await engine.submit("x", ENDLESS) for _ in range(5)]
        with pytest.raises(EngineOverloaded) as refused:
            await engine.submit("x", ENDLESS)
        assert refused.value.retry_after_s >= 1.0
        assert refused.value.max_queue == 3
        assert engine.stats().num_waiting >= 3
        await held.pop().aclose()
        executor.gate.set()
        await until(lambda: engine.stats().num_waiting < 3)
        held.append(await engine.submit("x", ENDLESS))
        for generation in held:
            await generation.aclose()
        await until(lambda: all_free(engine))


async def test_overload_is_found_before_tokenizing() -> None:
    tokenizer = byte_tokenizer()
    async with running(says("", then=97), tokenizer=tokenizer, max_num_seqs=1, max_queue=1) as (
        engine,
        executor,
    ):
        executor.gate.clear()
        held = [await engine.submit("x", ENDLESS) for _ in range(2)]
        tokenizer.encode = lambda *a: pytest.fail("tokenized")  # type: ignore[method-assign,misc]
        with pytest.raises(EngineOverloaded):
            await engine.submit("x", ENDLESS)
        assert len(held) == 2


async def test_a_refused_request_leaves_its_place() -> None:
    async with running(max_num_seqs=1, max_queue=1) as (engine, _):
        for _ in range(10):
            with pytest.raises(InvalidParameter):
                await engine.submit([999], SamplingParams())
        assert (await engine.complete("x", SamplingParams())).completions[0].text == "hello"


async def test_many_at_once() -> None:
    async with running(lambda request, index: request.prompt[index] if index < 20 else EOS) as (engine, _):
        prompts = [[65 + i] * 20 for i in range(24)]
        outputs = await asyncio.gather(*(engine.complete(prompt, SamplingParams()) for prompt in prompts))
        assert [output.completions[0].text for output in outputs] == [chr(65 + i) * 20 for i in range(24)]
        await until(lambda: all_free(engine))


async def test_one_call_a_step_reaches_the_event_loop() -> None:
    async with running(says("a" * 30)) as (engine, executor):
        loop = asyncio.get_running_loop()
        calls = 0
        original = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += threading.current_thread().name == "ridgeline-engine"
            return original(*args, **kwargs)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        try:
            await asyncio.gather(*(engine.complete("x", SamplingParams()) for _ in range(8)))
        finally:
            del loop.call_soon_threadsafe
        assert calls <= len(executor.plans)


# -- life and death --------------------------------------------------------------------------------


async def test_not_started_and_closed_engines_say_so() -> None:
    parts, executor = scripted_parts(says("x"))
    engine = AsyncEngine(parts)
    assert not engine.is_ready
    with pytest.raises(EngineClosed, match="not been started"):
        await engine.submit("x", SamplingParams())
    await engine.start()
    await engine.start()
    assert engine.is_ready
    await engine.close()
    await engine.close()
    assert executor.closed
    assert engine.is_healthy and not engine.is_ready
    with pytest.raises(EngineClosed, match="shutting down"):
        await engine.submit("x", SamplingParams())
    with pytest.raises(EngineClosed):
        await engine.start()


async def test_an_engine_that_never_started_closes() -> None:
    parts, executor = scripted_parts(says("x"))
    await AsyncEngine(parts).close()
    assert executor.closed


async def test_close_ends_live_requests() -> None:
    async with running(says("", then=97)) as (engine, executor):
        executor.gate.clear()
        task = asyncio.create_task(engine.complete("x", ENDLESS))
        await until(lambda: len(executor.plans) == 1)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0.01)
        executor.gate.set()
        await closing
        assert (await task).completions[0].finish_reason in ("abort", "length")


async def test_drain_waits_for_the_live_and_refuses_the_new() -> None:
    async with running() as (engine, executor):
        executor.gate.clear()
        task = asyncio.create_task(engine.complete("x", SamplingParams()))
        await until(lambda: len(executor.plans) == 1)
        drain = asyncio.create_task(engine.drain(10.0))
        await asyncio.sleep(0.02)
        assert not engine.is_ready
        with pytest.raises(EngineClosed):
            await engine.submit("x", SamplingParams())
        executor.gate.set()
        assert await drain is True
        assert (await task).completions[0].text == "hello"


async def test_drain_aborts_what_takes_too_long() -> None:
    async with running(says("", then=97)) as (engine, executor):
        executor.gate.clear()
        tasks = [asyncio.create_task(engine.complete("x", ENDLESS)) for _ in range(3)]
        await until(lambda: len(executor.plans) == 1)
        assert await engine.drain(0.02) is False
        executor.gate.set()
        for task in tasks:
            assert (await task).completions[0].finish_reason == "abort"


async def test_a_failed_step_is_an_error_of_its_requests_only() -> None:
    async with running() as (engine, executor):
        executor.fault = "out of luck"
        (completion,) = (await engine.complete("x", SamplingParams())).completions
        assert (completion.finish_reason, completion.error) == ("error", "out of luck")
        executor.fault = None
        assert engine.is_healthy
        assert (await engine.complete("x", SamplingParams())).completions[0].text == "hello"


async def test_a_crash_ends_every_request_and_is_unhealthy() -> None:
    async with running(says("", then=97)) as (engine, executor):
        executor.gate.clear()
        tasks = [asyncio.create_task(engine.complete("x", ENDLESS)) for _ in range(12)]
        await until(lambda: len(executor.plans) == 1)
        executor.crash = RuntimeError("kernel panic")
        executor.gate.set()
        for task in tasks:
            (completion,) = (await task).completions
            assert completion.finish_reason == "error"
            assert completion.error is not None and "kernel panic" in completion.error
        await until(lambda: not engine.is_ready)
        assert not engine.is_healthy
        with pytest.raises(EngineClosed, match="kernel panic"):
            await engine.submit("x", SamplingParams())
        assert await engine.drain(1.0) is True


async def test_subscribers_see_every_event_and_cannot_do_harm() -> None:
    events: list[Event] = []

    def broken(batch: list[Event]) -> None:
        raise ValueError("a bug in the metrics")

    async with running() as (engine, _):
        engine.subscribe(broken)
        unsubscribe = engine.subscribe(events.extend)
        await engine.complete("x", SamplingParams())
        await until(
            lambda: any(isinstance(event, StepCompleted) and event.num_running == 0 for event in events)
        )
        kinds = [type(event) for event in events]
        assert kinds[0] is Arrived
        assert kinds.count(TokensGenerated) == 6
        assert kinds.count(Finished) == 1
        unsubscribe()
        count = len(events)
        await engine.complete("x", SamplingParams())
        assert len(events) == count


async def test_an_idle_engine_sleeps() -> None:
    async with running() as (engine, _):
        await engine.complete("x", SamplingParams())
        await until(lambda: all_free(engine))
        before = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - before < 0.05


async def test_the_event_loop_is_free_during_a_step() -> None:
    async with running() as (engine, executor):
        executor.gate.clear()
        task = asyncio.create_task(engine.complete("x", SamplingParams()))
        await until(lambda: len(executor.plans) == 1)
        for _ in range(20):
            await asyncio.sleep(0.001)  # would hang if a step were waited for here
        executor.gate.set()
        assert (await task).completions[0].text == "hello"
