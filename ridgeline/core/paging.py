"""Block tables: how sequences get, share, let go and publish blocks, over all cache groups at once.

    group 0 (full)      [ 7][ 3][ 9][12]          every position stays
    group 1 (window)    [ -][ -][ 4][11]          `-` is NO_BLOCK: slid out of the window
                         positions -->

All tables of a sequence are equally long; the groups draw on one pool.
"""

from __future__ import annotations

from typing import NamedTuple

from ridgeline.core.block_pool import BlockPool
from ridgeline.core.config import CacheGroup, SchedulerConfig
from ridgeline.core.plan import NO_BLOCK
from ridgeline.core.prefix_index import PrefixIndex, extend_names
from ridgeline.core.sequence import Sequence

_NEVER = 1 << 62


class Hit(NamedTuple):
    """A cached prefix: `length` positions, and per group the table that covers them."""

    length: int
    tables: tuple[list[int], ...]


class Paging:
    """The pool, the prefix index and the rules of each cache group."""

    def __init__(self, config: SchedulerConfig, groups: tuple[CacheGroup, ...]) -> None:
        self.block_size = config.block_size
        self.groups = groups
        self.index = PrefixIndex(len(groups))
        self.pool = BlockPool(config.num_blocks, self.index)
        self._caching = config.enable_prefix_caching
        self._windows = [(g, group.window) for g, group in enumerate(groups) if group.window is not None]
        self._full = [g for g, group in enumerate(groups) if group.window is None]

    # What fits ------------------------------------------------------------------------------------

    def blocks_for(self, num_tokens: int) -> int:
        """Most blocks that a sequence of `num_tokens` positions holds when computed one token a step."""
        full = -(-num_tokens // self.block_size)
        total = len(self._full) * full
        for _, window in self._windows:
            total += min(full, -(-(window + 1) // self.block_size) + 1)
        return total

    def capacity_tokens(self, at_most: int) -> int:
        """Most positions (up to `at_most`) that a sequence alone in the pool can reach."""
        low, high = 0, at_most
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks_for(middle) <= self.pool.num_blocks:
                low = middle
            else:
                high = middle - 1
        return low

    # Prefix hits ----------------------------------------------------------------------------------

    def name_blocks(self, sequence: Sequence, num_blocks: int) -> list[bytes]:
        """Names of the sequence's blocks, at least the first `num_blocks` (all of whose tokens are known)."""
        names = sequence.names
        if len(names) < num_blocks:
            extend_names(names, sequence.root, sequence.tokens, self.block_size, num_blocks)
        return names

    def match(self, sequence: Sequence) -> Hit:
        """The longest cached prefix that satisfies every group; the last known token is never part of it."""
        if not self._caching or sequence.request.skip_prefix_cache:
            return Hit(0, tuple([] for _ in self.groups))
        most = (sequence.known - 1) // self.block_size
        names = self.name_blocks(sequence, most)
        tables: list[list[int]] = [[] for _ in self.groups]
        num = most
        for group in self._full:
            tables[group] = self._leading(group, names, num)
            num = len(tables[group])
        num = self._longest_windowed(names, num)
        for group in self._full:
            del tables[group][num:]
        for group, window in self._windows:
            first = self._first_seen(num * self.block_size, window)
            found = [self.index.find(group, names[i]) for i in range(first, num)]
            tables[group] = [NO_BLOCK] * first + [block for block in found if block is not None]
        return Hit(num * self.block_size, tuple(tables))

    def _leading(self, group: int, names: list[bytes], most: int) -> list[int]:
        blocks: list[int] = []
        for name in names[:most]:
            block = self.index.find(group, name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _longest_windowed(self, names: list[bytes], num: int) -> int:
        """Largest count of blocks <= `num` before which every window is wholly cached.

        A block missing at index j rules out every length whose window reaches j, so the next candidate is j.
        """
        settled = False
        while num and not settled:
            settled = True
            for group, window in self._windows:
                first = self._first_seen(num * self.block_size, window)
                for i in range(num - 1, first - 1, -1):
                    if self.index.find(group, names[i]) is None:
                        num, settled = i, False
                        break
                if not settled:
                    break
        return num

    def _first_seen(self, position: int, window: int) -> int:
        """Index of the first block that a query at `position` or later may read."""
        return max(0, position - window) // self.block_size

    def cost(self, hit: Hit, end: int, total: int) -> int:
        """Available blocks that it takes to hold the hit and to go on.

        To `end` positions in window groups, and to `total` in full groups: those never let go, so a prompt
        that will not fit had better not begin.
        """
        reached = hit.length // self.block_size
        new = (-(-total // self.block_size) - reached) * len(self._full)
        new += (-(-end // self.block_size) - reached) * len(self._windows)
        idle = self.pool.is_idle
        return new + sum(1 for table in hit.tables for block in table if block != NO_BLOCK and idle(block))

    def is_being_computed(self, sequence: Sequence, hit: Hit, running: list[Sequence]) -> bool:
        """Whether a running request is about to publish the block that would lengthen the hit."""
        index = hit.length // self.block_size
        end = hit.length + self.block_size
        if not self._caching or sequence.request.skip_prefix_cache or end >= sequence.known:
            return False
        name = sequence.names[index]
        return any(
            other.settled < end and len(other.names) > index and other.names[index] == name
            for other in running
        )

    # Holding --------------------------------------------------------------------------------------

    def adopt(self, sequence: Sequence, hit: Hit) -> None:
        """Hold the blocks of the hit; its positions count as computed."""
        for table in hit.tables:
            for block in table:
                if block != NO_BLOCK:
                    self.pool.retain(block)
        num = hit.length // self.block_size
        sequence.tables = [list(table) for table in hit.tables]
        for group, window in self._windows:
            sequence.slid[group] = self._first_seen(hit.length, window)
        sequence.room = hit.length
        sequence.computed = sequence.settled = hit.length
        sequence.publish_at = (num + 1) * self.block_size if self._caching else _NEVER
        sequence.blocks = tuple(map(tuple, sequence.tables))

    def grow(self, sequence: Sequence, end: int) -> bool:
        """Cover `end` positions, first letting go what slid out of the windows. False: not enough blocks."""
        slid = self._slide(sequence) if self._windows else False
        num = -(-end // self.block_size) - sequence.room // self.block_size
        fits = num * len(self.groups) <= self.pool.num_available
        if fits:
            for table in sequence.tables:
                table.extend([self.pool.allocate() for _ in range(num)])
            sequence.room += num * self.block_size
        if fits or slid:
            sequence.blocks = tuple(map(tuple, sequence.tables))
        return fits

    def _slide(self, sequence: Sequence) -> bool:
        """Let go of blocks that no row in flight or to come reads. True when there were any."""
        any_slid = False
        for group, window in self._windows:
            first = self._first_seen(sequence.settled, window)
            table = sequence.tables[group]
            for i in range(sequence.slid[group], first):
                self.pool.release(table[i])
                table[i] = NO_BLOCK
                any_slid = True
            if first > sequence.slid[group]:
                sequence.slid[group] = first
        return any_slid

    def publish(self, sequence: Sequence) -> None:
        """Make the blocks that are full of settled positions findable."""
        first = sequence.publish_at // self.block_size - 1
        last = sequence.settled // self.block_size
        names = self.name_blocks(sequence, last)
        for group, table in enumerate(sequence.tables):
            for i in range(first, last):
                if table[i] != NO_BLOCK:
                    self.index.insert(group, names[i], table[i])
        sequence.publish_at = (last + 1) * self.block_size

    def release(self, sequence: Sequence) -> None:
        """Give everything back, deepest block first: ends of prefixes are evicted before beginnings."""
        for table in sequence.tables:
            for block in reversed(table):
                if block != NO_BLOCK:
                    self.pool.release(block)
        sequence.clear_blocks(len(self.groups))
