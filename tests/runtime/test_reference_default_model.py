"""The default model on the reference backend against transformers in float32 (make_default.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ridgeline.engine.source import ModelSource, read_spec
from ridgeline.facts.kv_layout import kv_layout
from ridgeline.runtime.models import load_model
from ridgeline.runtime.reference.backend import ReferenceBackend
from ridgeline.runtime.weights import open_tensors
from tests.runtime.tiny_models import TinyModel

REFERENCE = json.loads((Path(__file__).parent.parent / "references" / "default_model.json").read_text())
ENTRIES: list[dict[str, Any]] = REFERENCE["prompts"]


@pytest.fixture(scope="module")
def loaded(default_model: ModelSource) -> TinyModel:
    spec, backend = read_spec(default_model), ReferenceBackend()
    model = load_model(spec, open_tensors(default_model, spec), backend)
    layout = kv_layout(spec, 16, 4)
    backend.allocate_kv(layout, 16)
    return TinyModel(spec, model, backend, layout, 16)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["prompt"][-20:])
def test_logits_and_greedy_text_equal_those_of_transformers(loaded: TinyModel, entry: dict[str, Any]) -> None:
    prompt, greedy = entry["prompt_token_ids"], entry["greedy_token_ids"]
    logits = loaded.logits(prompt + greedy)[len(prompt) - 1 : -1]
    scale = entry["logits_std"]
    assert np.abs(logits[0][entry["top_ids"]] - entry["top_logits"]).max() / scale < 1e-4
    assert logits[0].mean() == pytest.approx(entry["logits_mean"], abs=1e-4 * scale)
    assert logits[0].std() == pytest.approx(scale, rel=1e-4)
    # Each position predicts the next greedy token, so generating gives the same text.
    assert logits.argmax(axis=1).tolist() == greedy
