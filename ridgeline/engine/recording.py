"""A run written down: every add, abort, step, plan and result with its time, one JSON object a line.

A recording replays (contract 3: the same calls give the same plans) and calibrates (its plans and their
seconds are what a cost model is fitted to). What `Request.sampling` and the logprobs held is not kept:
neither can change a plan.

    {"kind": "begin", "format": 1, "config": {...}, "windows": [null], "policy": "fcfs", "overlap": false}
    {"kind": "add", "t": 0.1, "id": "a", "prompt": [1, 2], "max_tokens": 5, ...}
    {"kind": "step", "t": 0.1}
    {"kind": "plan", "t": 0.1, "step": 0, "rows": [["a", 0, 2, [[0]], 1]], "admitted": [["a", []]], ...}
    {"kind": "result", "t": 0.2, "step": 0, "tokens": [[7]], "seconds": 0.1, "error": null}
    {"kind": "abort", "t": 0.2, "id": "a", "reason": "abort"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, NamedTuple, get_args

from ridgeline.core.config import CacheGroup, SchedulerConfig
from ridgeline.core.event import FinishReason
from ridgeline.core.plan import Admission, Row, StepPlan, StepResult
from ridgeline.core.policy import POLICIES
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler

FORMAT = 1


class MalformedRecording(ValueError):
    """A line that is not what this module writes; the message has its number."""


class Added(NamedTuple):
    """`Engine.add` accepted a request."""

    time_s: float
    request: Request


class Aborted(NamedTuple):
    """`Engine.abort` was called."""

    time_s: float
    request_id: str
    reason: FinishReason


class Stepped(NamedTuple):
    """`Engine.step` was called. The plan and the result that follow belong to it."""

    time_s: float


class Planned(NamedTuple):
    """A plan was submitted."""

    time_s: float
    plan: StepPlan


class Collected(NamedTuple):
    """A result came back."""

    time_s: float
    result: StepResult


Entry = Added | Aborted | Stepped | Planned | Collected


class Recording(NamedTuple):
    """A run read back."""

    config: SchedulerConfig
    groups: tuple[CacheGroup, ...]
    policy: str
    overlap: bool
    entries: tuple[Entry, ...]

    def plans(self) -> tuple[StepPlan, ...]:
        """Every plan, in order."""
        return tuple(entry.plan for entry in self.entries if isinstance(entry, Planned))

    def results(self) -> tuple[Collected, ...]:
        """Every result with the time at which it was collected, in order."""
        return tuple(entry for entry in self.entries if isinstance(entry, Collected))

    def scheduler(self) -> Scheduler:
        """A fresh scheduler like the one that was recorded."""
        return Scheduler(self.config, self.groups, POLICIES[self.policy])


class Recorder:
    """Writes a recording to a path (closed by `close`) or to an open text file (left open)."""

    def __init__(self, target: Path | str | IO[str]) -> None:
        self._owns_file = isinstance(target, (str, Path))
        self._file: IO[str] = open(target, "w") if isinstance(target, (str, Path)) else target  # noqa: SIM115

    def begin(
        self, config: SchedulerConfig, groups: tuple[CacheGroup, ...], policy: str, overlap: bool
    ) -> None:
        """The first line: what the scheduler was."""
        windows = [group.window for group in groups]
        self._write(
            "begin", format=FORMAT, config=asdict(config), windows=windows, policy=policy, overlap=overlap
        )

    def added(self, time_s: float, request: Request) -> None:
        """A request that was accepted."""
        self._write(
            "add",
            t=time_s,
            id=request.id,
            prompt=request.prompt,
            max_tokens=request.max_tokens,
            stop_token_ids=sorted(request.stop_token_ids),
            min_tokens=request.min_tokens,
            priority=request.priority,
            cache_salt=request.cache_salt.hex(),
            skip_prefix_cache=request.skip_prefix_cache,
        )

    def aborted(self, time_s: float, request_id: str, reason: FinishReason) -> None:
        """A call of abort."""
        self._write("abort", t=time_s, id=request_id, reason=reason)

    def stepped(self, time_s: float) -> None:
        """A call of step."""
        self._write("step", t=time_s)

    def planned(self, time_s: float, plan: StepPlan) -> None:
        """A plan that was submitted."""
        admitted = [(admission.request.id, admission.generated) for admission in plan.admitted]
        self._write("plan", t=time_s, **(plan._asdict() | {"admitted": admitted}))

    def collected(self, time_s: float, result: StepResult) -> None:
        """A result that was collected."""
        fields = result._asdict()
        del fields["logprobs"]
        self._write("result", t=time_s, **fields)

    def close(self) -> None:
        """Everything is on file after this."""
        if self._owns_file:
            self._file.close()
        else:
            self._file.flush()

    def _write(self, kind: str, **fields: object) -> None:
        self._file.write(json.dumps({"kind": kind} | fields, separators=(",", ":")) + "\n")


def read_recording(source: Path | str | IO[str]) -> Recording:
    """Read a recording back.

    Raises:
        MalformedRecording: a line is not one that `Recorder` writes.
    """
    if isinstance(source, (str, Path)):
        with open(source) as file:
            return read_recording(file)
    lines = iter(enumerate(source, start=1))
    number, line = next(lines, (1, "{}"))
    try:
        head = json.loads(line)
        if head.get("kind") != "begin" or head.get("format") != FORMAT:
            raise ValueError(f"a recording of format {FORMAT} begins otherwise")
        if head["policy"] not in POLICIES:
            raise ValueError(f"no policy is called {head['policy']!r}")
        groups = tuple(CacheGroup(window) for window in head["windows"])
        config = SchedulerConfig(**head["config"])
        entries: list[Entry] = []
        live: dict[str, Request] = {}
        for number, line in lines:  # noqa: B007 (the error message reads it)
            entries.append(_entry(json.loads(line), live))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise MalformedRecording(f"line {number}: {type(error).__name__}: {error}") from error
    return Recording(config, groups, head["policy"], head["overlap"], tuple(entries))


def _entry(fields: dict, live: dict[str, Request]) -> Entry:
    kind, time_s = fields["kind"], float(fields["t"])
    if kind == "step":
        return Stepped(time_s)
    if kind == "plan":
        return Planned(time_s, _plan(fields, live))
    if kind == "result":
        tokens = _tuples(fields["tokens"])
        return Collected(time_s, StepResult(fields["step"], tokens, fields["seconds"], error=fields["error"]))
    if kind == "abort":
        if fields["reason"] not in get_args(FinishReason):
            raise ValueError(f"no finish reason is called {fields['reason']!r}")
        return Aborted(time_s, fields["id"], fields["reason"])
    if kind == "add":
        request = _request(fields)
        live[request.id] = request
        return Added(time_s, request)
    raise ValueError(f"no entry is of kind {kind!r}")


def _request(fields: dict) -> Request:
    return Request(
        id=fields["id"],
        prompt=tuple(fields["prompt"]),
        max_tokens=fields["max_tokens"],
        stop_token_ids=frozenset(fields["stop_token_ids"]),
        min_tokens=fields["min_tokens"],
        priority=fields["priority"],
        cache_salt=bytes.fromhex(fields["cache_salt"]),
        skip_prefix_cache=fields["skip_prefix_cache"],
    )


def _plan(fields: dict, live: dict[str, Request]) -> StepPlan:
    rows = tuple(
        Row(request_id, start, count, _tuples(blocks), num_samples)
        for request_id, start, count, blocks, num_samples in fields["rows"]
    )
    admitted = tuple(Admission(live[request_id], tuple(tokens)) for request_id, tokens in fields["admitted"])
    return StepPlan(fields["step"], rows, admitted, tuple(fields["released"]), fields["num_tokens"])


def _tuples(lists: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(inner) for inner in lists)


def timed_plans(recording: Recording) -> Iterator[tuple[StepPlan, float]]:
    """(plan, seconds) of every step that did not fail: what a cost model is fitted to."""
    for plan, (_, result) in zip(recording.plans(), recording.results()):
        if result.error is None:
            yield plan, result.seconds
