"""The default model at its default precision on the kernels, against transformers in float32.

The references are made by tests/references/make_default.py. Weights keep the
file's own grids and activations 16 bits, so greedy text is float32's, token for token. Keys and values are
bf16: where float32 itself finds two tokens nearly tied, either may come.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ridgeline import LLM, SamplingParams

pytest.importorskip("ridgeline.runtime.native._native", reason="the kernels are not built")

REFERENCE = json.loads((Path(__file__).parent.parent / "references" / "default_model.json").read_text())
NEAR_TIE = 0.02
"""Logits: float32's two likeliest tokens closer than this are a near tie."""


@pytest.fixture(scope="module")
def llm(default_model: object) -> Iterator[LLM]:
    with LLM(num_blocks=64, max_model_len=512) as loaded:
        yield loaded


@pytest.mark.parametrize("entry", REFERENCE["prompts"], ids=lambda entry: entry["prompt"][-20:])
def test_greedy_text_is_that_of_float32(llm: LLM, entry: dict[str, Any]) -> None:
    greedy = entry["greedy_token_ids"]
    params = SamplingParams(temperature=0, max_tokens=len(greedy), ignore_eos=True, logprobs=2)
    completion = llm.generate(entry["prompt_token_ids"], params)[0].completions[0]
    given = list(completion.token_ids)
    if entry["smallest_margin"] > NEAR_TIE:
        assert given == greedy
        return
    differing = next((i for i, (a, b) in enumerate(zip(given, greedy, strict=True)) if a != b), None)
    if differing is not None:
        assert completion.logprobs is not None
        first, second = completion.logprobs[differing].top[:2]
        assert greedy[differing] == second.token_id
        assert first.logprob - second.logprob < 5 * NEAR_TIE
