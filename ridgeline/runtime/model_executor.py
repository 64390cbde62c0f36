"""The executor of every backend: keeps each request's tokens, turns a plan into a Batch, runs it, samples.

    submit(plan) --queue--> worker: release, admit -> Batch -> backend.run -> sample --queue--> collect()

A worker thread runs plans in order, so a plan may be submitted before the one before it is collected:
a row finds the token that the previous step sampled in the token store, by position.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from ridgeline.core.plan import Row, StepPlan, StepResult
from ridgeline.engine.errors import EngineClosed
from ridgeline.engine.executor import StepSeconds
from ridgeline.engine.logprobs import RawLogprobs, RowLogprobs
from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.runtime.backend import Backend, Logits, Model, SamplingBackend
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.sampler import Sampled, mask_and_bias, sample
from ridgeline.runtime.sampler import logprobs_of as numpy_logprobs_of
from ridgeline.runtime.slots import Slots

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """What one plan row gave so far."""

    tokens: tuple[int, ...] = ()
    error: str | None = None
    logprobs: RowLogprobs | None = None

    def add_prompt(self, start: int, raw: list[RawLogprobs]) -> None:
        """Prompt logprobs of the positions from `start`, which follow those added before."""
        before = self.logprobs or RowLogprobs(prompt_start=start)
        self.logprobs = before._replace(prompt=(*before.prompt, *raw))


class ModelExecutor:
    """Runs plans with `model` on `backend`. Implements `engine.executor.Executor`.

    `block_size` is that of the KV layout; `num_groups` its number of groups. `max_model_len` and
    `max_num_seqs` size the token store (it grows if more requests come).
    """

    def __init__(
        self,
        model: Model,
        backend: Backend,
        *,
        block_size: int,
        num_groups: int,
        max_model_len: int,
        max_num_seqs: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.backend = backend
        self.seconds = StepSeconds()
        self._clock = clock
        self._max_logit_rows = max_num_seqs
        self._slots = Slots(max_num_seqs, max_model_len, block_size, num_groups)
        self._plans: SimpleQueue[StepPlan | None] = SimpleQueue()
        self._results: SimpleQueue[StepResult] = SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="ridgeline-executor", daemon=True)
        self._worker.start()

    def submit(self, plan: StepPlan) -> None:
        """Queue a plan; returns at once. Raises EngineClosed when nobody would ever run it."""
        if not self._worker.is_alive():
            raise EngineClosed(
                "the executor has no worker: it was closed, or this process is a fork of its own"
            )
        self._plans.put(plan)

    def collect(self) -> StepResult:
        """The result of the oldest plan not collected yet; waits for it. A failed step is a result too."""
        return self._results.get()

    def close(self) -> None:
        """Finish the plans that were submitted, then stop the worker and close the backend."""
        if self._worker.is_alive():
            self._plans.put(None)
            self._worker.join()
            self.backend.close()

    def _work(self) -> None:
        while (plan := self._plans.get()) is not None:
            self._results.put(self._run_or_report(plan))

    def _run_or_report(self, plan: StepPlan) -> StepResult:
        start = self._clock()
        try:
            return self._run(plan, start)
        except Exception as error:
            log.exception("step %d failed", plan.step)
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            nothing: tuple[tuple[int, ...], ...] = tuple(() for _ in plan.rows)
            return StepResult(plan.step, nothing, self._clock() - start, error=message)

    def _run(self, plan: StepPlan, start: float) -> StepResult:
        self._slots.release(plan.released)
        for admission in plan.admitted:
            self._slots.admit(admission)
        outcomes = [Outcome() for _ in plan.rows]
        for indices, rows in self._passes(plan.rows):
            self._run_pass(rows, [outcomes[i] for i in indices])
        return StepResult(
            plan.step,
            tuple(outcome.tokens for outcome in outcomes),
            self._clock() - start,
            logprobs=tuple(o.logprobs for o in outcomes) if any(o.logprobs for o in outcomes) else None,
            row_errors=tuple(o.error for o in outcomes) if any(o.error for o in outcomes) else None,
        )

    def _passes(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[Row]]]:
        """The rows as the backend runs them: at once, but for those that want logits of every position.

        Such a row goes alone, in pieces of at most `max_num_seqs` positions, so that no step holds more
        logits than a full batch of decodes does. Yields row indices and rows.
        """
        every = {i for i, row in enumerate(rows) if row.count > 1 and self._slots.wants_prompt_logprobs(row)}
        usual = [i for i in range(len(rows)) if i not in every]
        if usual:
            yield usual, [rows[i] for i in usual]
        for i in sorted(every):
            row = rows[i]
            for done in range(0, row.count, self._max_logit_rows):
                count = min(self._max_logit_rows, row.count - done)
                samples = row.num_samples if done + count == row.count else 0
                yield [i], [row._replace(start=row.start + done, count=count, num_samples=samples)]

    def _run_pass(self, rows: list[Row], outcomes: list[Outcome]) -> None:
        start = self._clock()
        batch = self._slots.batch(rows)
        built = self._clock()
        logits = self.backend.run(self.model, batch)
        computed = self._clock()
        self._sample(rows, batch, logits, outcomes)
        self.seconds.batch_s += built - start
        self.seconds.forward_s += computed - built
        self.seconds.sample_s += self._clock() - computed

    def _sample(self, rows: list[Row], batch: Batch, logits: Logits, outcomes: list[Outcome]) -> None:
        """Tokens, logprobs and errors of each row; the tokens go into the store."""
        slots = self._slots
        last = np.searchsorted(batch.logit_rows, batch.row_starts[1:] - 1)
        for i, row in enumerate(rows):
            if slots.wants_prompt_logprobs(row):
                outcomes[i].add_prompt(row.start + 1, self._prompt_logprobs(row, logits, int(last[i])))
        sampling = [i for i, row in enumerate(rows) if row.num_samples]
        if not sampling:
            return
        wanted = rows if len(sampling) == len(rows) else [rows[i] for i in sampling]
        sampled = self._choose(wanted, logits if len(sampling) == len(logits) else logits[last[sampling]])
        slots.append(wanted, sampled.tokens)
        for i, token, error, own in zip(
            sampling, sampled.tokens.tolist(), sampled.errors, sampled.logprobs, strict=True
        ):
            outcomes[i].tokens = () if error else (token,)
            outcomes[i].error = error
            if own is not None:
                outcomes[i].logprobs = (outcomes[i].logprobs or RowLogprobs())._replace(sampled=(own,))

    def _choose(self, rows: list[Row], logits: Logits) -> Sampled:
        """A token for each row of `logits` `[m, vocab]`, by the backend's sampler if it has one."""
        if not isinstance(self.backend, SamplingBackend):
            return sample(logits, [self._slots.sample_row(row) for row in rows])
        for i in self._slots.masked_or_biased(rows):
            mask_and_bias(logits[i], self._slots.sample_row(rows[i]))
        return self.backend.sample(logits, self._slots.sampling_batch(rows))

    def _prompt_logprobs(self, row: Row, logits: Logits, last: int) -> list[RawLogprobs]:
        """Log probabilities of the prompt tokens that this chunk predicts (positions start + 1 on)."""
        following = self._slots.prompt_after(row)
        first = last - row.count + 1
        params: SamplingParams = self._slots.params(row.request_id)
        logprobs_of = (
            self.backend.logprobs_of if isinstance(self.backend, SamplingBackend) else numpy_logprobs_of
        )
        return logprobs_of(logits[first : first + len(following)], following, params.prompt_logprobs or 0)
