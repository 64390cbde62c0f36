"""Norms, rotations, activations and argmax of every tier of this machine against numpy float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

native = pytest.importorskip("ridgeline.runtime.native._native")

TIERS = native.available_tiers()


@pytest.fixture(scope="module", params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pool(tier: str):
    return native.ThreadPool(2, tier)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", [1, 3, 17, 64, 100, 576, 1027])
@pytest.mark.parametrize("groups", [1, 5])
def test_rms_norm(tier, pool, width, groups):
    x, weight = normal(7, groups * width), normal(width)
    y = np.empty_like(x)
    native.rms_norm(pool, x, weight, 1e-5, y, tier=tier)
    heads = x.reshape(7, groups, width).astype(np.float64)
    expected = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(y, expected.reshape(x.shape), rtol=2e-6, atol=1e-7)
    alone = np.empty_like(x[3:4])
    native.rms_norm(native.ThreadPool(1, tier), x[3:4], weight, 1e-5, alone, tier=tier)
    assert np.array_equal(alone, y[3:4])


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (96, 96), (80, 20), (256, 256), (6, 6)])
def test_rope(tier, pool, head_dim, rotary_dim):
    half = rotary_dim // 2
    angles = np.outer(np.arange(50), 10000.0 ** (-np.arange(half) / half))
    positions = np.array([0, 49, 7, 7, 23], np.int32)
    x = normal(5, 3 * head_dim)
    y = x.copy()
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    native.rope(pool, y, cos, sin, positions, head_dim, tier=tier)
    heads = x.reshape(5, 3, head_dim).astype(np.float64)
    c, s = np.cos(angles)[positions][:, None], np.sin(angles)[positions][:, None]
    a, b = heads[..., :half], heads[..., half:rotary_dim]
    expected = np.concatenate([a * c - b * s, b * c + a * s, heads[..., rotary_dim:]], axis=-1)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-6)


FUNCTIONS = {
    "exp2": (np.exp2, -126, 127),
    "exp": (np.exp, -87, 88),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -80, 80),
    "tanh": (np.tanh, -30, 30),
    "silu": (lambda x: x / (1 + np.exp(-x)), -80, 80),
    "gelu_tanh": (lambda x: x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), -5, 30),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(tier, pool, name):
    function, low, high = FUNCTIONS[name]
    ranges = [np.linspace(low, high, 20001), np.linspace(-1, 1, 20001), [0.0, 1e-6]]
    x = np.concatenate(ranges).astype(np.float32)
    y = np.empty_like(x)
    native.apply(pool, name, x, y, tier=tier)
    tolerance = 3e-6 if name == "gelu_tanh" else 1e-6  # its exponent is a rounded polynomial of up to 40
    np.testing.assert_allclose(y, function(x.astype(np.float64)), rtol=tolerance, atol=1e-36)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_far_out(tier, pool, name):
    x = np.array([-1e30, -200, 200, 1e30, np.inf, np.nan], np.float32)
    y = np.empty_like(x)
    native.apply(pool, name, x, y, tier=tier)
    assert np.isnan(y[-1]) and not np.isnan(y[:-1]).any()
    assert y[2] > 1e38 if name.startswith("exp") else y[2] == {"sigmoid": 1, "tanh": 1}.get(name, 200)
    assert abs(y[1]) < 1e-30 or (name == "tanh" and y[1] == -1)


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 1000, 49152])
def test_argmax(tier, pool, width):
    x = np.random.default_rng(width).integers(0, max(2, width // 3), (9, width)).astype(np.float32)
    x[0] = -np.inf
    x[1] = x[1, 0]
    x[2, -1] = 1e9
    index = np.empty(9, np.int32)
    native.argmax(pool, x, index, tier=tier)
    assert np.array_equal(index, x.argmax(axis=1))
    for column in {0, width // 2, width - 1}:
        broken = x.copy()
        broken[4, column] = np.nan
        native.argmax(pool, broken, index, tier=tier)
        assert index[4] == -1 and np.array_equal(np.delete(index, 4), np.delete(x.argmax(axis=1), 4))
