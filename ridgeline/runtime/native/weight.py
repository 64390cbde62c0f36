"""Weights as the native backend holds them: packed matrices and constants of the C++ module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class MatrixWeight:
    """`matrix` is a `_native.Matrix`."""

    matrix: Any


@dataclass(frozen=True, slots=True, eq=False)
class TableWeight(MatrixWeight):
    """An embedding table; packed like an output head, so a tied head is the same bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class VectorWeight:
    """`constant` is a `_native.Constant` of `size` values."""

    constant: Any
    size: int
