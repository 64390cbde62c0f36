"""A matrix as the reference backend keeps it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Matrix:
    """`values` `[out, in]` float32 (or a table `[vocab, hidden]`), `bias` `[out]` or None."""

    values: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None = None
