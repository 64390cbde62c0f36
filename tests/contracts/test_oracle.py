"""Contract 4: for every pair of features, token for token, the engine equals the naive generation."""

from __future__ import annotations

from functools import cache

import pytest

from ridgeline.runtime.reference.backend import ReferenceBackend
from tests.contracts.oracle import IMPOSSIBLE, PAIRS, SINGLES, Subject, run_case
from tests.references import tiny
from tests.runtime.tiny_models import load_tiny

CASES = [pair for pair in PAIRS if pair not in IMPOSSIBLE]


@cache
def tiny_subject(name: str, kv_bf16: bool) -> Subject:
    model = load_tiny(name, num_blocks=256, backend=ReferenceBackend(kv_bf16=kv_bf16))
    return Subject(model.model, model.backend, model.layout, model.num_blocks, model.spec.vocab_size)


def subject_for(features: tuple[str, ...]) -> Subject:
    return tiny_subject("gemma3" if "windowed" in features else "llama", "kv_bf16" in features)


@pytest.mark.parametrize("features", [(), *SINGLES, *CASES], ids="+".join)
def test_reference_equals_the_naive_generation(features: tuple[str, ...]) -> None:
    run_case(subject_for(features), features)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_every_architecture_with_everything_at_once(name: str) -> None:
    everything = ("chunked", "preempted", "batched", "overlapped", "aborted", "sampled", "penalised")
    run_case(tiny_subject(name, False), (*everything, "prefix"))
    run_case(tiny_subject(name, False), (*everything, "logprobs"))
