"""Angles of rotary embeddings (Su et al. 2021), computed in float64; every backend rotates by these."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ridgeline.facts.model_spec import RopeSpec


def inverse_frequencies(rope: RopeSpec) -> npt.NDArray[np.float64]:
    """Radians per position of each rotated pair, `[rotary_dim / 2]`, scaling included."""
    half = rope.rotary_dim // 2
    frequencies = rope.theta ** (-np.arange(half, dtype=np.float64) / half)
    if rope.freq_factors is not None:
        return frequencies / np.asarray(rope.freq_factors, np.float64)  # type: ignore[no-any-return]
    if rope.scaling is None:
        return frequencies  # type: ignore[no-any-return]
    kind, *numbers = rope.scaling
    if kind == "linear":
        return frequencies / float(numbers[0])  # type: ignore[no-any-return]
    if kind == "llama3":
        return _llama3(frequencies, *map(float, numbers))
    raise ValueError(f"rope scaling {kind!r} is not known")


def _llama3(
    frequencies: npt.NDArray[np.float64], factor: float, low: float, high: float, original_context: float
) -> npt.NDArray[np.float64]:
    """Slow pairs are divided by `factor`, fast ones left, those between blended (Llama 3.1 model code)."""
    turns = original_context * frequencies / (2 * math.pi)  # over the original context
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / factor)


def cos_sin(
    rope: RopeSpec, positions: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines, each `[len(positions), rotary_dim / 2]` float32."""
    angles = positions.astype(np.float64)[:, None] * inverse_frequencies(rope)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
