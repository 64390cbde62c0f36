"""Matrix products of every tier of this machine against numpy, on random and odd shapes."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.facts.ggml import GgmlType
from ridgeline.runtime.weights.dequant import dequantize

native = pytest.importorskip("ridgeline.runtime.native._native")

TIERS = native.available_tiers()
KINDS = ["int8", "int4", "bf16", "float32"]
TOLERANCE = {"int8": 0.01, "int4": 0.12, "bf16": 0.006, "float32": 1e-6}
"""Largest error over the largest result; weights are normal, so int4's grid is the coarsest that it gets."""
SHAPES = [(1, 1), (5, 3), (32, 64), (33, 65), (250, 640), (96, 576), (17, 1030), (130, 31)]


@pytest.fixture(scope="module", params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pool(tier: str):
    return native.ThreadPool(2, tier)


def matrix(pool, tier, weights, kind, **options):
    data = np.ascontiguousarray(weights, np.float32).view(np.uint8).ravel()
    parts = [(data, int(GgmlType.F32), len(weights), None)]
    return native.Matrix(pool, parts, weights.shape[1], kind, tier=tier, **options)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(tier, pool, kind, shape):
    weights, x = normal(*shape), normal(21, shape[1])
    got = matrix(pool, tier, weights, kind).multiply(pool, x)
    assert got.shape == (21, shape[0])
    if shape[1] > 1 or kind != "int4":
        assert error(got, x @ weights.T) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(tier, pool, kind):
    weights, x = normal(130, 700), normal(75, 700)
    w = matrix(pool, tier, weights, kind)
    together = w.multiply(pool, x)
    alone = native.ThreadPool(1, tier)
    for rows in (1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 64):
        for start in (0, 75 - rows):
            part = w.multiply(alone, np.ascontiguousarray(x[start : start + rows]))
            np.testing.assert_array_equal(part, together[start : start + rows])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_integer_tiers_agree(tier, pool, kind):
    """The integers are the same, but for the last bits; float sums may round differently."""
    weights, x = normal(70, 320), normal(9, 320)
    first = native.ThreadPool(1, TIERS[0])
    expected = matrix(first, TIERS[0], weights, kind).multiply(first, x)
    assert error(matrix(pool, tier, weights, kind).multiply(pool, x), expected) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_bias_and_residual(tier, pool, kind):
    weights, x, bias, residual = normal(50, 96), normal(5, 96), normal(50), normal(5, 50)
    w = matrix(pool, tier, weights, kind, bias=bias)
    plain = matrix(pool, tier, weights, kind).multiply(pool, x)
    np.testing.assert_allclose(w.multiply(pool, x), plain + bias, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(w.multiply(pool, x, residual), residual + (plain + bias), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("inner", [16, 40, 7])
def test_gated(tier, pool, activation, inner):
    weights, x, bias = normal(2 * inner, 96), normal(19, 96), normal(2 * inner)
    got = matrix(pool, tier, weights, "float32", gated=True, bias=bias).multiply(pool, x, epilogue=activation)
    gate, up = np.split((x @ weights.T + bias).astype(np.float64), 2, axis=1)
    if activation == "silu":
        expected = gate / (1 + np.exp(-gate)) * up
    else:
        expected = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up
    assert error(got, expected) < 1e-5


def test_softcap(tier, pool):
    weights, x = normal(45, 32), normal(4, 32) * 10
    got = matrix(pool, tier, weights, "float32").multiply(pool, x, epilogue="softcap", softcap=30.0)
    assert error(got, 30 * np.tanh(x @ weights.T / 30)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_norm_on_the_way(tier, pool, kind):
    weights, x, norm = normal(64, 200), normal(6, 200), normal(200)
    got = matrix(pool, tier, weights, kind).multiply(pool, x, norm_weight=norm, eps=1e-5)
    normed = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-5) * norm
    assert error(got, normed @ weights.T) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_rows(tier, pool, kind):
    table, ids = normal(100, 70), np.array([0, 99, 31, 32, 7], np.int32)
    got = matrix(pool, tier, table, kind).embed(pool, ids, 2.0)
    assert error(got, 2 * table[ids]) < TOLERANCE[kind]


def test_stacked_and_permuted_parts(tier, pool):
    first, second = normal(40, 64), normal(24, 64, seed=1)
    order = np.random.default_rng(0).permutation(40)
    halves = second.astype(np.float16)
    parts = [
        (first.view(np.uint8).ravel(), int(GgmlType.F32), 40, order),
        (halves.view(np.uint8).ravel(), int(GgmlType.F16), 24, None),
    ]
    x = normal(3, 64)
    got = native.Matrix(pool, parts, 64, "float32", tier=tier).multiply(pool, x)
    expected = x @ np.concatenate([first[order], halves.astype(np.float32)]).T
    assert error(got, expected) < 1e-6


KEPT = [("Q4_0", "int4"), ("Q4_1", "int4"), ("Q4_K", "int4"), ("Q8_0", "int8"), ("Q5_0", "int8")]
ROUNDED = [("Q5_1", "int8"), ("Q5_K", "int8"), ("Q6_K", "int8")]


def stored(type_name: str, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks with scales near 0.01 and small offsets: (bytes, the values that they are)."""
    kind, rng = GgmlType[type_name], np.random.default_rng(3)
    blocks = rng.integers(0, 256, (rows * columns // kind.block_size, kind.type_size), dtype=np.uint8)
    scales = rng.uniform(0.005, 0.02, (len(blocks), 2)) * [1, -7 if type_name in ("Q4_1", "Q5_1") else 1]
    halves = scales.astype(np.float16).view(np.uint8)
    if type_name == "Q6_K":
        blocks[:, -2:] = halves[:, :2]
    elif type_name in ("Q4_0", "Q5_0", "Q8_0"):
        blocks[:, :2] = halves[:, :2]
    else:
        blocks[:, :4] = halves
    return blocks.ravel(), dequantize(blocks.reshape(rows, -1), kind)


@pytest.mark.parametrize(("type_name", "kind"), KEPT + ROUNDED, ids=str)
def test_grid_of_the_file(tier, pool, type_name, kind):
    """A file's grid of the kind's form is kept to 16 bits; others are rounded to 8 bits a group."""
    data, weights = stored(type_name, 48, 512)
    x = normal(5, 512)
    w = native.Matrix(pool, [(data, int(GgmlType[type_name]), 48, None)], 512, kind, tier=tier)
    tolerance = 4e-4 if (type_name, kind) in KEPT else 0.008
    assert error(w.multiply(pool, x), x @ weights.T) < tolerance
    assert error(w.embed(pool, np.arange(48, dtype=np.int32), 1.0), weights) < tolerance


def test_int8_codes_may_be_extreme(tier, pool):
    """-128 and a negative scale are legal in a file, and fit."""
    codes = np.full((4, 2, 32), -128, np.int8)
    codes[:, 1, :16] = 127
    scale = np.array([0.5, -0.5], np.float16).reshape(1, 2, 1).repeat(4, 0)
    data = np.concatenate([scale.view(np.uint8).reshape(4, 2, 2), codes.view(np.uint8)], axis=2).ravel()
    weights = (scale.astype(np.float32) * codes).reshape(4, 64)
    x = normal(3, 64)
    w = native.Matrix(pool, [(data, int(GgmlType.Q8_0), 4, None)], 64, "int8", tier=tier)
    assert error(w.multiply(pool, x), x @ weights.T) < 4e-4


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_survive_in_their_row_only(tier, pool, kind):
    weights, x = normal(40, 96), normal(4, 96)
    x[1, 5], x[3, 95] = np.nan, np.inf
    got = matrix(pool, tier, weights, kind).multiply(pool, x)
    assert not np.isfinite(got[[1, 3]]).any()
    assert np.isfinite(got[[0, 2]]).all()


def test_zero_rows_and_zero_weights(tier, pool):
    for kind in KINDS:
        w = matrix(pool, tier, np.zeros((10, 40), np.float32), kind)
        assert not w.multiply(pool, normal(3, 40)).any()
        assert (
            not matrix(pool, tier, normal(10, 40), kind).multiply(pool, np.zeros((2, 40), np.float32)).any()
        )
        assert w.multiply(pool, np.zeros((0, 40), np.float32)).shape == (0, 10)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "int3"}, "kind"),
        ({"num_inputs": 65}, "data"),
        ({"num_inputs": 0}, "num_inputs"),
        ({"parts": []}, "parts"),
        ({"parts": [(np.zeros(256, np.uint8), 99, 1, None)]}, "ggml type 99"),
        ({"parts": [(np.zeros(256, np.uint8), 0, -1, None)]}, "num_rows"),
        ({"parts": [(np.zeros(256, np.float32), 0, 1, None)]}, "uint8"),
        ({"parts": [(np.zeros(256, np.uint8), 0, 1, np.array([1]))]}, "row_order"),
        ({"gated": True}, "gated"),
        ({"bias": np.zeros(2, np.float32)}, "bias"),
        ({"bias": np.zeros(1, np.float64)}, "bias"),
    ],
)
def test_wrong_arguments_are_named(change, named):
    arguments = {"parts": [(np.zeros(256, np.uint8), 0, 1, None)], "num_inputs": 64, "kind": "int8"} | change
    with pytest.raises(ValueError, match=named):
        native.Matrix(native.ThreadPool(1), **arguments)


def test_wrong_rows_are_named(tier, pool):
    w = matrix(pool, tier, normal(8, 32), "int8")
    with pytest.raises(ValueError, match="x:"):
        w.multiply(pool, normal(2, 31))
    with pytest.raises(ValueError, match="residual"):
        w.multiply(pool, normal(2, 32), normal(2, 9))
    with pytest.raises(ValueError, match="epilogue"):
        w.multiply(pool, normal(2, 32), epilogue="silu")
    with pytest.raises(ValueError, match=r"ids\[1\]"):
        w.embed(pool, np.array([0, 8], np.int32))
