"""Contract 4: for every pair of features, token for token, the engine equals the naive generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest

from ridgeline.engine.source import ModelSource, resolve_source
from tests.contracts.oracle import (
    BACKENDS,
    IMPOSSIBLE,
    NATIVE_WEIGHTS,
    PAIRS,
    SINGLES,
    Subject,
    kv_dtype_of,
    load_subject,
    run_case,
)
from tests.references import tiny

CASES = [(), *SINGLES, *(pair for pair in PAIRS if pair not in IMPOSSIBLE)]
EVERYTHING = ("chunked", "preempted", "batched", "overlapped", "aborted", "sampled", "penalised")
Load = Callable[..., Subject]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Load a tiny model once for each combination of arguments."""
    folder, subjects = tmp_path_factory.mktemp("tiny"), list[Subject]()

    @cache
    def loaded(name: str, backend: str, **options: object) -> Subject:
        tiny.write_checkpoint(folder / name, name)
        subjects.append(load_subject(resolve_source(str(folder / name)), backend, **options))
        return subjects[-1]

    yield loaded
    for subject in subjects:
        subject.executor.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("features", CASES, ids="+".join)
def test_every_pair_equals_the_naive_generation(load: Load, backend: str, features: tuple[str, ...]) -> None:
    name = "gemma3" if "windowed" in features else "llama"
    run_case(load(name, backend, kv_dtype=kv_dtype_of(features)), features)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_every_architecture_with_everything_at_once(load: Load, backend: str, name: str) -> None:
    run_case(load(name, backend), (*EVERYTHING, "prefix"))
    run_case(load(name, backend), (*EVERYTHING, "logprobs"))
    run_case(load(name, backend, kv_dtype="int8"), (*EVERYTHING, "prefix"))


@pytest.mark.parametrize("weights", NATIVE_WEIGHTS)
def test_the_default_model_in_every_precision(default_model: ModelSource, weights: str) -> None:
    for kv_dtype in ("bf16", "int8"):
        subject = load_subject(default_model, "native", weights=weights, kv_dtype=kv_dtype)
        run_case(subject, (*EVERYTHING, "prefix"))
        subject.executor.close()
