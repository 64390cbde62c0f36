"""Where the values of a step live: one arena, a value's bytes free for others after its last reader.

op      0   1   2   3   4   5            offset
x      [=====================]           0
rows       [===]                         |x|
qkv            [=======]                 |x| + |rows|
out                [===========]         |x|            (rows is dead by then)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT_BYTES = 64


@dataclass(eq=False, slots=True)
class Value:
    """`num_bytes` needed from instruction `first` to instruction `last`; `offset` is set by `lay_out`."""

    num_bytes: int
    row_bytes: int
    first: int = -1
    last: int = -1
    offset: int = -1

    def touch(self, instruction: int) -> None:
        """Instruction `instruction` reads or writes it."""
        if self.first < 0:
            self.first = instruction
        self.last = max(self.last, instruction)


def lay_out(values: Sequence[Value]) -> int:
    """Give each value the lowest offset that no value alive with it has. Returns the arena's bytes."""
    placed: list[Value] = []
    for value in sorted(values, key=lambda v: (v.first, -v.num_bytes)):
        neighbours = sorted((v for v in placed if v.last >= value.first), key=lambda v: v.offset)
        offset = 0
        for other in neighbours:
            if other.offset - offset >= value.num_bytes:
                break
            offset = max(offset, _aligned(other.offset + other.num_bytes))
        value.offset = offset
        placed.append(value)
    return max((_aligned(v.offset + v.num_bytes) for v in placed), default=ALIGNMENT_BYTES)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
