"""What contract 4 runs: an engine with some features switched on, against `naive_generate`.

A feature must not only be allowed, it must have happened: each has its own proof, read from the events.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import combinations

import numpy as np

from ridgeline.core.config import CacheGroup, SchedulerConfig
from ridgeline.core.event import (
    Admitted,
    Event,
    Finished,
    Preempted,
    PromptComputed,
    StepCompleted,
    TokensGenerated,
)
from ridgeline.core.policy import PRIORITY
from ridgeline.core.request import Request
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.clock import MonotonicClock
from ridgeline.engine.engine import Engine
from ridgeline.engine.hardware_probe import probe_hardware, probe_native
from ridgeline.engine.options import EngineOptions
from ridgeline.engine.resolve import resolve
from ridgeline.engine.sampling_params import SamplingParams
from ridgeline.engine.source import ModelSource, read_spec
from ridgeline.facts.kv_layout import KvLayout
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.model_executor import ModelExecutor
from tests.contracts.naive import naive_generate

FEATURES = {
    "chunked": "chunked prefill",
    "prefix": "prefix cache hit",
    "preempted": "preemption and recompute",
    "batched": "continuous batching",
    "overlapped": "overlapped steps",
    "aborted": "aborted neighbours",
    "sampled": "seeded sampling",
    "penalised": "penalties, bias, min_tokens",
    "logprobs": "logprobs and prompt logprobs",
    "windowed": "sliding window",
    "kv_bf16": "bf16 KV cache",
    "kv_int8": "int8 KV cache",
}
PAIRS = list(combinations(FEATURES, 2))
SINGLES = [(feature,) for feature in FEATURES]
IMPOSSIBLE = {
    ("prefix", "logprobs"): "prompt logprobs need every position computed, so such a request skips the cache",
    ("kv_bf16", "kv_int8"): "a cache has numbers of one kind",
}
BACKENDS = ["reference"] + (["native"] if probe_native().available else [])
NATIVE_WEIGHTS = ["bf16", "int8", "int4"] if "native" in BACKENDS else []
MAX_TOKENS = 12
STOP_TOKENS = frozenset({2, 11})


@dataclass
class Subject:
    """A model on a backend, ready to run. `naive_cache` keeps what `naive_generate` gave."""

    executor: ModelExecutor
    layout: KvLayout
    num_blocks: int
    vocab_size: int
    naive_cache: dict[object, list[int]] = field(default_factory=dict)

    def logits_of(self, token_ids: list[int]) -> np.ndarray:
        """Logits of the last position, everything computed anew in blocks of its own."""
        n, groups = len(token_ids), len(self.layout.groups)
        width = -(-n // self.layout.block_size)
        blocks = np.arange(groups * width, dtype=np.int32).reshape(groups, 1, width)
        batch = Batch(
            token_ids=np.array(token_ids, np.int32),
            positions=np.arange(n, dtype=np.int32),
            row_starts=np.array([0, n], np.int32),
            context_before=np.array([0], np.int32),
            block_tables=tuple(blocks),
            logit_rows=np.array([n - 1], np.int32),
        )
        return self.executor.backend.run(self.executor.model, batch)[0].copy()

    def naive(self, request: Request) -> list[int]:
        params = request.sampling
        assert isinstance(params, SamplingParams)
        key = (request.prompt, params.seed, params.temperature, params.repetition_penalty)
        if key not in self.naive_cache:
            self.naive_cache[key] = naive_generate(
                self.logits_of, request.prompt, params, request.stop_token_ids
            )
        return self.naive_cache[key]


def load_subject(source: ModelSource, backend: str, **options: object) -> Subject:
    """Load a model as the engine does: options -> configuration -> executor."""
    spec = read_spec(source)
    limits = {"block_size": 16, "num_blocks": 256, "max_model_len": 256, "max_num_seqs": 8}
    wished = EngineOptions.from_mapping({"backend": backend, **limits, **options})
    config, _ = resolve(wished, spec, probe_hardware())
    executor = import_module(f"ridgeline.runtime.{backend}.executor").load(source, spec, config)
    return Subject(executor, config.kv_layout(spec), config.num_blocks, spec.vocab_size)


def kv_dtype_of(features: tuple[str, ...]) -> str:
    """The option that switches on what is asked of the cache's numbers."""
    return "bf16" if "kv_bf16" in features else "int8" if "kv_int8" in features else "auto"


def sampling_of(features: frozenset[str], index: int) -> SamplingParams:
    """Sampling parameters of request `index`."""
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=index)
    if "sampled" in features:
        params = replace(params, temperature=0.9, top_p=0.95, top_k=50, min_p=0.001)
    if "penalised" in features:
        params = replace(
            params, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2, min_tokens=4,
            logit_bias={7: 1.5, 9: -100.0},
        )  # fmt: skip
    if "logprobs" in features:
        params = replace(params, logprobs=3, prompt_logprobs=1)
    return params


def requests_of(features: frozenset[str], vocab_size: int) -> list[Request]:
    """Four requests that share their first 40 tokens; two more that never stop, to be aborted."""
    rng = np.random.default_rng(3)
    shared = rng.integers(14, vocab_size, 40)
    names = ["a", "b", "c", "d"] + (["x", "y"] if "aborted" in features else [])
    requests = []
    for index, name in enumerate(names):
        own = np.random.default_rng([4, index]).integers(14, vocab_size, 7 + 6 * index)
        params = sampling_of(features, index)
        requests.append(
            Request(
                name,
                tuple(int(t) for t in (*shared, *own)),
                MAX_TOKENS,
                frozenset() if name in "xy" else STOP_TOKENS,
                params.min_tokens,
                priority=-1 if name in "cd" and "preempted" in features else 0,
                skip_prefix_cache=params.prompt_logprobs is not None,
                sampling=params,
            )
        )
    return requests


def scheduler_of(features: frozenset[str], subject: Subject) -> Scheduler:
    """Limits that make the wished-for features happen and the others not.

    Two seats, few blocks and urgent requests that come late push others out.
    """
    size, groups = subject.layout.block_size, subject.layout.groups
    tight = 11 * len(groups)
    several = 8 if features & {"batched", "aborted"} else 1
    config = SchedulerConfig(
        block_size=size,
        num_blocks=tight if "preempted" in features else subject.num_blocks,
        max_num_seqs=2 if "preempted" in features else several,
        max_num_batched_tokens=13 if "chunked" in features else 512,
        max_model_len=128,
        enable_prefix_caching="prefix" in features,
    )
    return Scheduler(config, tuple(CacheGroup(group.window) for group in groups), PRIORITY)


def run_case(subject: Subject, features: tuple[str, ...]) -> None:
    """Run the requests with these features on; raise AssertionError unless tokens equal the naive ones."""
    wished = frozenset(features)
    requests = requests_of(wished, subject.vocab_size)
    expected = {r.id: subject.naive(r) for r in requests}
    engine = Engine(
        scheduler_of(wished, subject), subject.executor, MonotonicClock(), overlap="overlapped" in wished
    )
    events = run(engine, requests)
    if "prefix" in wished:  # once more, now that the prefixes are there
        check_tokens(events, expected)
        events = run(engine, requests)
    check_tokens(events, expected)
    check_happened(wished, events)


def run(engine: Engine, requests: list[Request]) -> list[Event]:
    """Step until nothing is left; urgent requests come late, those named x and y are aborted on the way."""
    late = [request for request in requests if request.priority < 0]
    events = [event for request in requests if request not in late for event in engine.add(request)]
    steps = 0
    while engine.has_work():
        events += engine.step()
        steps += 1
        if steps == 3:
            events += [event for request in late for event in engine.add(request)]
        if steps == 4:
            events += engine.abort("x")
        if steps == 7:
            events += engine.abort("y")
        assert steps < 2000
    return events


def check_tokens(events: list[Event], expected: dict[str, list[int]]) -> None:
    tokens: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if isinstance(event, TokensGenerated):
            tokens[event.request_id] += event.tokens
        if isinstance(event, Finished):
            assert event.error is None, event
    for name, wanted in expected.items():
        if name in ("x", "y"):
            assert tokens[name] == wanted[: len(tokens[name])], name
        else:
            assert tokens[name] == wanted, name


def check_happened(wished: frozenset[str], events: list[Event]) -> None:
    """Proof that what was wished for took place."""
    chunks = [e for e in events if isinstance(e, PromptComputed)]
    if "chunked" in wished:
        assert any(e.start > 0 for e in chunks)
    if "prefix" in wished and "logprobs" not in wished:
        assert any(e.num_cached_tokens for e in events if isinstance(e, Admitted))
    if "preempted" in wished:
        assert any(isinstance(e, Preempted) for e in events)
    if "aborted" in wished:
        assert sum(e.reason == "abort" for e in events if isinstance(e, Finished)) >= 1
    if "logprobs" in wished:
        assert all(e.logprobs is not None for e in events if isinstance(e, TokensGenerated | PromptComputed))
    if "batched" in wished:
        assert any(e.num_rows > 1 for e in events if isinstance(e, StepCompleted))
