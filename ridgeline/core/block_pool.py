"""Who holds which block of the KV cache.

    free    nobody holds it and it holds nothing of worth
    cached  nobody holds it, but the prefix index knows its content: it can be revived, or evicted
    held    referenced by one sequence or more

Every block is in exactly one of the three (contract 2).
"""

from __future__ import annotations

from collections import OrderedDict

from ridgeline.core.config import IllegalMove
from ridgeline.core.prefix_index import PrefixIndex


class BlockPool:
    """Reference-counted blocks `0 .. num_blocks - 1` of equal size; cached ones leave oldest first."""

    def __init__(self, num_blocks: int, index: PrefixIndex) -> None:
        self.num_blocks = num_blocks
        self._index = index
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first

    @property
    def num_free(self) -> int:
        """Blocks without content."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds and whose content can be found."""
        return len(self._cached)

    @property
    def num_held(self) -> int:
        """Blocks that somebody holds, counted from the references (so that conservation can be checked)."""
        return sum(1 for count in self._references if count)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free) + len(self._cached)

    def references(self) -> tuple[int, ...]:
        """References to each block, `[num_blocks]`."""
        return tuple(self._references)

    def is_idle(self, block: int) -> bool:
        """Whether nobody holds the block; retaining it then takes one from `num_available`."""
        return self._references[block] == 0

    def allocate(self) -> int:
        """A block with one reference; evicts the least recently used cached block when none is free.

        Raises:
            IllegalMove: every block is held. Ask `num_available` first.
        """
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            self._index.forget(block)
        else:
            raise IllegalMove("allocate from a pool whose blocks are all held")
        self._references[block] = 1
        return block

    def retain(self, block: int) -> None:
        """One more reference to a block found through the index."""
        if self._references[block] == 0:
            if block not in self._cached:
                raise IllegalMove(f"retain free block {block}")
            del self._cached[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        """One reference less; the last one makes the block cached (if published) or free."""
        count = self._references[block] - 1
        if count < 0:
            raise IllegalMove(f"release block {block}, which nobody holds")
        self._references[block] = count
        if count == 0:
            if self._index.holds(block):
                self._cached[block] = None
            else:
                self._free.append(block)
