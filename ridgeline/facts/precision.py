"""In which precision weights are held, and which one holds what a file stores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Precision = Literal["float32", "bf16", "int8", "int4"]
Weights = Literal["float32", "bf16", "int8", "int4", "stored"]
"""`stored`: each matrix in the least precision that holds what its file stores (`precision_for`)."""

_NARROWEST: dict[str, Precision] = {
    "Q4_0": "int4",
    "Q4_1": "int4",
    "Q4_K": "int4",
    "Q5_0": "int8",
    "Q5_1": "int8",
    "Q5_K": "int8",
    "Q6_K": "int8",
    "Q8_0": "int8",
}
ROUNDED = frozenset({"Q5_1", "Q5_K", "Q6_K"})
"""Held as int8, but not on the file's own grid: rounded to 8 bits of each group of 32."""
_WIDTH: dict[Precision, int] = {"int4": 0, "int8": 1, "bf16": 2, "float32": 3}


def precision_for(stored_types: Iterable[str]) -> Precision:
    """The least precision that holds matrices stored in these types, stacked: the widest of theirs.

    Types that are not quantised, and none at all, are held as bf16.
    """
    wanted: list[Precision] = [_NARROWEST.get(name, "bf16") for name in stored_types]
    return max(wanted or ["bf16"], key=_WIDTH.__getitem__)
