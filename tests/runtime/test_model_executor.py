"""The executor: plans in, results out, in order, and never an exception."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.core.config import SchedulerConfig
from ridgeline.core.event import Finished
from ridgeline.core.plan import NO_BLOCK, Admission, Row, StepPlan
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.clock import MonotonicClock
from ridgeline.engine.engine import Engine
from ridgeline.engine.errors import EngineClosed
from ridgeline.engine.logprobs import RowLogprobs
from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.model_executor import ModelExecutor
from ridgeline.runtime.sampler import logprobs_of
from ridgeline.runtime.slots import Slots
from tests.references import tiny
from tests.runtime.tiny_models import TinyModel, load_tiny

GREEDY = SamplingParams(temperature=0)


def executor_of(tiny_model: TinyModel, **options: int) -> ModelExecutor:
    limits = {"max_model_len": 200, "max_num_seqs": 4} | options
    return ModelExecutor(
        tiny_model.model, tiny_model.backend, block_size=8, num_groups=len(tiny_model.layout.groups), **limits
    )


def request(name: str, prompt: list[int], sampling: SamplingParams = GREEDY) -> Request:
    return Request(name, tuple(prompt), 50, sampling=sampling)


def blocks(first: int, positions: int) -> tuple[tuple[int, ...], ...]:
    return (tuple(range(first, first + -(-positions // 8))),)


def test_chunks_decodes_and_overlap_give_the_naive_tokens() -> None:
    model, prompt = load_tiny("llama"), tiny.prompt(tiny.CONFIGS["llama"], length=21)
    naive = list(prompt)
    for _ in range(4):
        naive.append(int(model.logits(naive)[-1].argmax()))
    executor = executor_of(model)
    admitted = (Admission(request("a", prompt), ()),)
    table = blocks(5, 25)
    plans = [
        StepPlan(0, (Row("a", 0, 16, table, 0),), admitted, (), 16),
        StepPlan(1, (Row("a", 16, 5, table, 1),), (), (), 5),
        *(StepPlan(2 + i, (Row("a", 21 + i, 1, table, 1),), (), (), 1) for i in range(3)),
    ]
    for plan in plans:  # all before the first collect: each finds the token of the step before
        executor.submit(plan)
    results = [executor.collect() for _ in plans]
    executor.close()
    assert [r.step for r in results] == [0, 1, 2, 3, 4]
    assert [r.tokens for r in results] == [((),), *(((t,),) for t in naive[21:])]
    assert all(r.error is None and r.seconds > 0 for r in results)
    assert executor.seconds.forward_s > 0


def test_a_resumed_request_brings_its_tokens() -> None:
    model, prompt = load_tiny("llama"), tiny.prompt(tiny.CONFIGS["llama"], length=9)
    expected = int(model.logits([*prompt, 17, 18])[-1].argmax())
    executor = executor_of(model)
    row = Row("a", 0, 11, blocks(3, 12), 1)
    executor.submit(StepPlan(0, (row,), (Admission(request("a", prompt), (17, 18)),), ("a",), 11))
    assert executor.collect().tokens == ((expected,),)
    executor.close()


def test_prompt_logprobs_and_sampled_logprobs() -> None:
    model, prompt = load_tiny("llama"), tiny.prompt(tiny.CONFIGS["llama"], length=10)
    whole = model.logits(prompt)
    params = SamplingParams(temperature=0, logprobs=2, prompt_logprobs=1)
    executor = executor_of(model)
    admitted = (Admission(request("a", prompt, params), ()), Admission(request("b", prompt), ()))
    a, b = blocks(0, 11), blocks(8, 11)
    executor.submit(StepPlan(0, (Row("a", 0, 4, a, 0), Row("b", 0, 10, b, 1)), admitted, (), 14))
    executor.submit(StepPlan(1, (Row("b", 10, 1, b, 1), Row("a", 4, 6, a, 1)), (), (), 7))
    first, second = executor.collect(), executor.collect()
    executor.close()
    assert first.logprobs is not None and second.logprobs is not None
    head, tail = first.logprobs[0], second.logprobs[1]
    assert isinstance(head, RowLogprobs) and isinstance(tail, RowLogprobs)
    assert first.logprobs[1] is None and second.logprobs[0] is None
    assert (head.prompt_start, len(head.prompt), head.sampled) == (1, 4, ())
    assert (tail.prompt_start, len(tail.prompt), len(tail.sampled)) == (5, 5, 1)
    wanted = logprobs_of(whole[:9], np.array(prompt[1:], np.int32), 1)
    assert [*head.prompt, *tail.prompt] == wanted
    assert tail.sampled[0] == logprobs_of(whole[9:], np.array(second.tokens[1], np.int32), 2)[0]


def test_more_requests_than_promised_find_room() -> None:
    model = load_tiny("llama")
    executor = executor_of(model, max_num_seqs=1)
    prompts = [tiny.prompt(tiny.CONFIGS["llama"], seed=i, length=5) for i in range(5)]
    rows = tuple(Row(str(i), 0, 5, (((i,)),), 1) for i in range(5))
    rows = tuple(row._replace(blocks=((i,),)) for i, row in enumerate(rows))
    admitted = tuple(Admission(request(str(i), p), ()) for i, p in enumerate(prompts))
    executor.submit(StepPlan(0, rows, admitted, (), 25))
    expected = tuple((int(model.logits(p)[-1].argmax()),) for p in prompts)
    assert executor.collect().tokens == expected
    executor.close()


class Faulty:
    """A backend that fails, or returns NaN for one row."""

    def __init__(self, vocab: int, nan_row: int | None) -> None:
        self.vocab, self.nan_row = vocab, nan_row

    def run(self, model: object, batch: Batch) -> np.ndarray:
        if self.nan_row is None:
            raise MemoryError("no room\nfor this")
        logits = np.zeros((len(batch.logit_rows), self.vocab), np.float32)
        logits[self.nan_row, 3] = np.nan
        return logits

    def close(self) -> None:
        pass


def faulty_result(nan_row: int | None) -> object:
    executor = ModelExecutor(
        None, Faulty(9, nan_row), block_size=8, num_groups=1, max_model_len=64, max_num_seqs=2  # type: ignore[arg-type]
    )  # fmt: skip
    rows = (Row("a", 0, 3, ((0,),), 1), Row("b", 0, 3, ((1,),), 1))
    admitted = tuple(Admission(request(name, [1, 2, 3]), ()) for name in "ab")
    executor.submit(StepPlan(0, rows, admitted, (), 6))
    result = executor.collect()
    executor.close()
    executor.close()  # twice is no harm
    return result


def test_a_failed_step_is_a_result() -> None:
    result = faulty_result(None)
    assert result.error == "MemoryError: no room"  # type: ignore[attr-defined]
    assert result.tokens == ((), ())  # type: ignore[attr-defined]


def test_logits_that_are_not_numbers_fail_their_row_alone() -> None:
    result = faulty_result(1)
    assert result.error is None and result.tokens == ((0,), ())  # type: ignore[attr-defined]
    assert result.row_errors == (None, "the model's logits are not finite")  # type: ignore[attr-defined]


def test_a_row_that_fails_ends_its_request_alone_and_says_why() -> None:
    executor = ModelExecutor(
        None, Faulty(9, 1), block_size=8, num_groups=1, max_model_len=64, max_num_seqs=2  # type: ignore[arg-type]
    )  # fmt: skip
    engine = Engine(Scheduler(SchedulerConfig(block_size=8, num_blocks=16)), executor, MonotonicClock())
    for name in "ab":
        engine.add(Request(name, (1, 2, 3), 1, sampling=GREEDY))
    events = engine.step()
    finished = {e.request_id: (e.reason, e.error) for e in events if isinstance(e, Finished)}
    engine.close()
    assert finished == {"a": ("length", None), "b": ("error", "the model's logits are not finite")}


def test_prompt_logprobs_never_hold_more_logits_than_a_full_batch() -> None:
    model, prompt = load_tiny("llama"), tiny.prompt(tiny.CONFIGS["llama"], length=21)
    logits = model.logits(prompt)
    held: list[int] = []
    run = model.backend.run

    def watched(ran: object, batch: Batch) -> object:
        held.append(len(batch.logit_rows))
        return run(ran, batch)  # type: ignore[arg-type]

    executor = executor_of(model)
    executor.backend.run = watched  # type: ignore[method-assign, assignment]
    wanting = SamplingParams(temperature=0, prompt_logprobs=2, logprobs=0)
    admitted = (
        Admission(request("a", prompt, wanting), ()),
        Admission(request("b", prompt[:5]), ()),
    )
    rows = (Row("a", 0, 21, blocks(5, 21), 1), Row("b", 0, 5, blocks(12, 5), 1))
    executor.submit(StepPlan(0, rows, admitted, (), 26))
    result = executor.collect()
    executor.close()
    model.backend.run = run  # type: ignore[method-assign]

    assert max(held) <= 4
    assert result.tokens[0] == (int(logits[-1].argmax()),)
    assert result.logprobs is not None
    mine = result.logprobs[0]
    assert isinstance(mine, RowLogprobs)
    expected = logprobs_of(logits[:-1], np.array(prompt[1:], np.int32), 2)
    assert mine.prompt_start == 1
    assert [raw.token_id for raw in mine.prompt] == prompt[1:]
    np.testing.assert_allclose(
        [raw.logprob for raw in mine.prompt], [raw.logprob for raw in expected], atol=1e-5
    )
    assert len(mine.sampled) == 1


def test_a_slot_keeps_no_blocks_of_its_last_occupant() -> None:
    slots = Slots(num_slots=2, max_model_len=64, block_size=8, num_groups=1)
    slots.admit(Admission(request("long", [1] * 30), ()))
    slots.batch([Row("long", 0, 30, blocks(10, 30), 1)])
    slots.release(["long"])
    slots.admit(Admission(request("short", [1] * 5), ()))
    slots.admit(Admission(request("wide", [1] * 30), ()))
    (table,) = slots.batch(
        [Row("short", 0, 5, blocks(0, 5), 1), Row("wide", 0, 30, blocks(20, 30), 1)]
    ).block_tables
    assert table.tolist() == [[0, NO_BLOCK, NO_BLOCK, NO_BLOCK], [20, 21, 22, 23]]


def test_a_plan_for_a_worker_that_is_gone_is_refused() -> None:
    executor = executor_of(load_tiny("llama"))
    executor.close()  # a fork has the same effect in the child
    with pytest.raises(EngineClosed, match="worker"):
        executor.submit(StepPlan(0, (), (), (), 0))
