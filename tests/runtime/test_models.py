"""Every architecture against transformers in float32 (references stored by tests/references/make_tiny.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ridgeline.facts.config_json import model_spec_from_config
from ridgeline.runtime.models import CheckpointMismatch, load_model
from ridgeline.runtime.reference.backend import ReferenceBackend
from tests.references import tiny
from tests.runtime.tiny_models import load_tiny, stream_of

REFERENCES = np.load(Path(__file__).parent.parent / "references" / "tiny.npz")
EVERY = 3  # the reference keeps every third position


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_logits_equal_those_of_transformers(name: str) -> None:
    logits = load_tiny(name).logits(tiny.prompt(tiny.CONFIGS[name]))[::EVERY]
    reference = REFERENCES[f"{name}_logits"]
    worst = np.abs(logits - reference).max() / reference.std()
    assert worst < 1e-4, worst


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_greedy_tokens_equal_those_of_transformers(name: str) -> None:
    model, ids = load_tiny(name), tiny.prompt(tiny.CONFIGS[name])
    expected = REFERENCES[f"{name}_greedy"].tolist()
    for _ in expected:
        ids.append(int(model.logits(ids)[-1].argmax()))
    assert ids[-len(expected) :] == expected


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_chunk_borders_do_not_change_a_bit(name: str) -> None:
    model, ids = load_tiny(name), tiny.prompt(tiny.CONFIGS[name], length=83)
    whole = model.logits(ids)
    for chunks in ([40, 43], [1] * 83, [7, 1, 64, 11]):
        assert np.array_equal(model.logits(ids, chunks), whole), chunks


def test_a_missing_tensor_is_named() -> None:
    arrays = tiny.tensors(tiny.CONFIGS["llama"])
    del arrays["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CheckpointMismatch, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        _load(arrays)


def test_a_left_over_tensor_is_named() -> None:
    arrays = tiny.tensors(tiny.CONFIGS["llama"]) | {"model.layers.3.surprise": np.zeros(3, np.float32)}
    with pytest.raises(CheckpointMismatch, match=r"model\.layers\.3\.surprise"):
        _load(arrays)


def test_a_wrong_shape_is_named() -> None:
    arrays = tiny.tensors(tiny.CONFIGS["llama"]) | {"model.norm.weight": np.zeros(3, np.float32)}
    with pytest.raises(CheckpointMismatch, match=r"model\.norm\.weight has shape \[3\], expected \[64\]"):
        _load(arrays)


def test_a_tied_head_may_be_stored_twice() -> None:
    config = tiny.CONFIGS["llama3"]
    arrays = tiny.tensors(config)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    load_model(model_spec_from_config(config, "twice"), stream_of(arrays), ReferenceBackend())


def _load(arrays: dict[str, np.ndarray]) -> None:
    load_model(model_spec_from_config(tiny.CONFIGS["llama"], "tiny"), stream_of(arrays), ReferenceBackend())
