"""Whole models on the tape against the reference: every architecture, tier and way to batch."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.facts.config_json import model_spec_from_config
from ridgeline.facts.kv_layout import KvLayout, kv_layout
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.models import load_model
from ridgeline.runtime.native.arena import Value, lay_out
from ridgeline.runtime.reference.backend import ReferenceBackend
from tests.references import tiny
from tests.runtime.tiny_models import TinyModel, stream_of

native = pytest.importorskip("ridgeline.runtime.native._native")
backend_module = pytest.importorskip("ridgeline.runtime.native.backend")

TIERS = native.available_tiers()
BLOCK_SIZE = 16
TOKENS = [int(t) for t in np.random.default_rng(5).integers(3, 199, 70)]
TOLERANCE = {"float32": 0.01, "bf16": 0.08, "int8": 0.1, "int4": 0.8, "int8_kv": 0.02}
"""Relative error of the logits; the cache is bf16 (int8: a last bit may move a whole step), these models are
random and tiny."""


def load(name: str, backend, int8_kv: bool = False) -> TinyModel:
    spec = model_spec_from_config(tiny.CONFIGS[name], name)
    model = load_model(spec, stream_of(tiny.tensors(tiny.CONFIGS[name])), backend)
    layout = kv_layout(spec, BLOCK_SIZE, *((1, 4) if int8_kv else (2,)))
    backend.allocate_kv(layout, 64)
    return TinyModel(spec, model, backend, layout, 64)


def on_native(
    name: str,
    weights: str = "float32",
    tier: str = "",
    num_threads: int = 2,
    max_tokens: int = 96,
    int8_kv: bool = False,
):
    backend = backend_module.NativeBackend(
        weights=weights,
        head_weights=weights if weights != "int4" else "int8",
        num_threads=num_threads,
        max_num_batched_tokens=max_tokens,
        max_model_len=256,
        tier=tier,
    )
    return load(name, backend, int8_kv)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def tables_of(layout: KvLayout, rows: int, width: int) -> tuple[np.ndarray, ...]:
    """Blocks of `rows` sequences that share none."""
    groups = len(layout.groups)
    return tuple(
        (np.arange(rows)[:, None] * groups * width + g * width + np.arange(width)).astype(np.int32)
        for g in range(groups)
    )


def ragged(layout: KvLayout, sequences: list[tuple[list[int], int, int]], width: int = 6) -> Batch:
    """Rows (tokens of the sequence, start, count), each computing its part; logits of every token."""
    counts = [count for _, _, count in sequences]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Batch(
        token_ids=np.concatenate([np.array(s[a : a + n], np.int32) for s, a, n in sequences]),
        positions=np.concatenate([np.arange(a, a + n, dtype=np.int32) for _, a, n in sequences]),
        row_starts=starts,
        context_before=np.array([a for _, a, _ in sequences], np.int32),
        block_tables=tables_of(layout, len(sequences), width),
        logit_rows=np.arange(starts[-1], dtype=np.int32),
    )


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_logits_are_those_of_the_reference(name, tier):
    expected = load(name, ReferenceBackend(kv_dtype="bf16")).logits(TOKENS)
    assert relative_error(on_native(name, tier=tier).logits(TOKENS), expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_logits_are_those_of_the_reference_with_an_int8_cache(name, tier):
    expected = load(name, ReferenceBackend(kv_dtype="int8")).logits(TOKENS)
    model = on_native(name, tier=tier, int8_kv=True)
    assert relative_error(model.logits(TOKENS), expected) < TOLERANCE["int8_kv"]


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "llama_bias", "gemma3"])
def test_precisions(name, weights):
    expected = load(name, ReferenceBackend(kv_dtype="bf16")).logits(TOKENS)
    assert relative_error(on_native(name, weights).logits(TOKENS), expected) < TOLERANCE[weights]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("weights", ["int8", "bf16", "float32"])
def test_chunks_and_threads_change_no_bit(tier, weights):
    name = "gemma3"
    whole = on_native(name, weights, tier).logits(TOKENS)
    for chunks in ([1] * 70, [33, 1, 36], [64, 6]):
        for num_threads in (1, 3):
            got = on_native(name, weights, tier, num_threads).logits(TOKENS, chunks)
            np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize("tier", TIERS)
def test_company_changes_no_bit(tier):
    """Three sequences in one ragged step, prefill beside decode, against each alone."""
    sequences = [TOKENS, TOKENS[::-1], TOKENS[10:60]]
    alone = [on_native("qwen3", "int8", tier).logits(s) for s in sequences]
    together = on_native("qwen3", "int8", tier)
    first = ragged(together.layout, [(sequences[0], 0, 40), (sequences[1], 0, 5), (sequences[2], 0, 49)])
    second = ragged(together.layout, [(sequences[0], 40, 30), (sequences[1], 5, 30), (sequences[2], 49, 1)])
    one = together.backend.run(together.model, first).copy()
    two = together.backend.run(together.model, second).copy()
    for i, logits in enumerate(alone):
        parts = [
            out[batch.row_starts[i] : batch.row_starts[i + 1]] for out, batch in ((one, first), (two, second))
        ]
        got = np.concatenate(parts)
        np.testing.assert_array_equal(got, logits[: len(got)])


def test_only_wanted_logits_are_computed():
    everything = on_native("llama").logits(TOKENS[:20])
    model = on_native("llama")
    batch = ragged(model.layout, [(TOKENS, 0, 20)])
    for rows in ([19], [0, 7, 19], []):
        wanted = Batch(
            batch.token_ids, batch.positions, batch.row_starts, batch.context_before, batch.block_tables,
            np.array(rows, np.int32),
        )  # fmt: skip
        got = model.backend.run(model.model, wanted)
        assert got.shape == (len(rows), 199)
        np.testing.assert_array_equal(got, everything[rows])


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("token_ids", np.full(4, 199, np.int32), "token_ids"),
        ("token_ids", np.full(4, -1, np.int32), "token_ids"),
        ("token_ids", np.zeros(3, np.int32), "positions"),
        ("positions", np.array([0, 1, 2, 4], np.int32), "positions"),
        ("row_starts", np.array([0, 5], np.int32), "row_starts"),
        ("row_starts", np.array([0, 2, 4], np.int32), "row_starts"),
        ("context_before", np.array([-1], np.int32), "context_before"),
        ("block_tables", (np.array([[64]], np.int32),), "block_tables"),
        ("block_tables", (np.array([[-1]], np.int32),), "block_tables"),
        ("block_tables", (np.zeros((1, 0), np.int32),), "block_tables"),
        ("block_tables", (), "block_tables"),
        ("logit_rows", np.array([4], np.int32), "logit_rows"),
    ],
)
def test_an_input_that_does_not_fit_is_named(field, value, named):
    model = on_native("llama")
    fields = {
        "token_ids": np.zeros(4, np.int32),
        "positions": np.arange(4, dtype=np.int32),
        "row_starts": np.array([0, 4], np.int32),
        "context_before": np.zeros(1, np.int32),
        "block_tables": (np.zeros((1, 1), np.int32),),
        "logit_rows": np.array([3], np.int32),
    }
    model.backend.run(model.model, Batch(**fields))
    with pytest.raises(ValueError, match=named):
        model.backend.run(model.model, Batch(**(fields | {field: value})))


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="max_tokens"):
        on_native("llama", max_tokens=8).logits(TOKENS[:9])


def test_values_alive_together_do_not_overlap():
    rng = np.random.default_rng(1)
    values = []
    for _ in range(200):
        first = int(rng.integers(0, 100))
        values.append(Value(int(rng.integers(1, 5000)), 4, first, first + int(rng.integers(0, 12))))
    total = lay_out(values)
    for i, a in enumerate(values):
        assert a.offset >= 0 and a.offset % 64 == 0 and a.offset + a.num_bytes <= total
        for b in values[:i]:
            if a.first <= b.last and b.first <= a.last:
                assert a.offset + a.num_bytes <= b.offset or b.offset + b.num_bytes <= a.offset
    assert total < sum(v.num_bytes for v in values) / 2
