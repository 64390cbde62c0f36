"""Blocks, names, transitions and policies, one by one."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ridgeline.core.block_pool import BlockPool
from ridgeline.core.config import CacheGroup, IllegalMove, SchedulerConfig
from ridgeline.core.paging import Paging
from ridgeline.core.plan import NO_BLOCK
from ridgeline.core.policy import FCFS, POLICIES, PRIORITY
from ridgeline.core.prefix_index import PrefixIndex, extend_names, root_name
from ridgeline.core.request import Request
from ridgeline.core.sequence import TRANSITIONS, Move, Sequence, Status


def test_a_block_is_free_cached_or_held() -> None:
    index = PrefixIndex(1)
    pool = BlockPool(3, index)
    a, b = pool.allocate(), pool.allocate()
    assert (pool.num_free, pool.num_cached, pool.num_held) == (1, 0, 2)
    assert (
        index.insert(0, b"name", a) and not index.insert(0, b"name", b) and not index.insert(0, b"other", a)
    )
    pool.release(a)
    pool.release(b)
    assert (pool.num_free, pool.num_cached, pool.num_held) == (2, 1, 0)
    pool.retain(a)
    pool.retain(a)
    assert pool.references()[a] == 2 and pool.num_available == 2
    pool.release(a)
    pool.release(a)
    for _ in range(3):
        pool.allocate()
    assert index.find(0, b"name") is None and len(index) == 0
    with pytest.raises(IllegalMove, match="all held"):
        pool.allocate()


def test_blocks_are_not_released_twice_nor_revived_when_free() -> None:
    pool = BlockPool(2, PrefixIndex(1))
    block = pool.allocate()
    pool.release(block)
    with pytest.raises(IllegalMove, match="nobody holds"):
        pool.release(block)
    with pytest.raises(IllegalMove, match="free block"):
        pool.retain(block)


tokens = st.lists(st.integers(0, 3), max_size=12)


@given(tokens, tokens, st.integers(1, 4), st.binary(max_size=2), st.binary(max_size=2))
def test_equal_names_mean_equal_prefix_and_salt(
    a: list[int], b: list[int], block_size: int, salt_a: bytes, salt_b: bytes
) -> None:
    named = []
    for prompt, salt in ((a, salt_a), (b, salt_b)):
        names: list[bytes] = []
        extend_names(names, root_name(salt), prompt, block_size, len(prompt) // block_size)
        named.append(names)
    for i, (name_a, name_b) in enumerate(zip(*named, strict=False)):
        end = (i + 1) * block_size
        assert (name_a == name_b) == (salt_a == salt_b and a[:end] == b[:end])
        assert len(name_a) == 32


def test_names_grow_with_the_tokens() -> None:
    whole: list[bytes] = []
    extend_names(whole, root_name(b""), range(12), 4, 3)
    grown: list[bytes] = []
    for count in (1, 1, 3):
        extend_names(grown, root_name(b""), range(12), 4, count)
    assert grown == whole


def test_the_table_of_moves_is_the_law() -> None:
    for status in Status:
        for move in Move:
            sequence = Sequence(Request("a", (1,), 1), 0, 2, b"", 1)
            sequence.status = status
            if (status, move) in TRANSITIONS:
                sequence.move(move)
                assert sequence.status is TRANSITIONS[status, move]
            else:
                with pytest.raises(IllegalMove, match=f"{status.value}: cannot {move.value}"):
                    sequence.move(move)


def test_policies_are_pure_orders() -> None:
    urgent = Request("urgent", (1,), 1, priority=-1)
    patient = Request("patient", (1,), 1, priority=4)
    assert FCFS.rank(patient, 0) < FCFS.rank(urgent, 1)
    assert PRIORITY.rank(urgent, 1) < PRIORITY.rank(patient, 0)
    assert PRIORITY.rank(urgent, 1) < PRIORITY.rank(urgent, 2)
    running, waiting = (Sequence(request, 0, 2, b"", 1) for request in (patient, urgent))
    assert PRIORITY.yields(running, waiting) and not PRIORITY.yields(waiting, running)
    assert not PRIORITY.yields(running, running) and not FCFS.yields(running, waiting)
    assert POLICIES == {"fcfs": FCFS, "priority": PRIORITY}


@given(
    st.sets(st.integers(0, 9)),
    st.lists(st.sets(st.integers(0, 9)), min_size=1, max_size=2),
    st.lists(st.integers(1, 20), min_size=2, max_size=2),
    st.integers(1, 40),
)
def test_match_is_the_longest_hit_of_all_groups(
    full: set[int], windowed: list[set[int]], windows: list[int], num_prompt: int
) -> None:
    """Against the definition, tried for every length."""
    block_size = 4
    groups = (CacheGroup(), *(CacheGroup(window) for window, _ in zip(windows, windowed, strict=False)))
    paging = Paging(SchedulerConfig(block_size, 64), groups)
    sequence = Sequence(Request("a", tuple(range(num_prompt)), 1), 0, 99, root_name(b""), len(groups))
    num_named = num_prompt // block_size
    names = list(paging.name_blocks(sequence, num_named))
    cached = [full, *windowed]
    for group, blocks in enumerate(cached):
        for i in blocks & set(range(num_named)):
            block = paging.pool.allocate()
            paging.index.insert(group, names[i], block)
            paging.pool.release(block)

    def satisfied(length: int) -> bool:
        for group, blocks in zip(groups, cached, strict=True):
            first = 0 if group.window is None else max(0, length - group.window) // block_size
            if not set(range(first, length // block_size)) <= blocks:
                return False
        return True

    best = max(length for length in range(0, num_prompt, block_size) if satisfied(length))
    hit = paging.match(sequence)
    assert hit.length == best
    for table in hit.tables:
        assert len(table) == best // block_size
        assert NO_BLOCK not in table[-1:]


@given(
    st.integers(1, 8),
    st.integers(1, 60),
    st.lists(st.one_of(st.none(), st.integers(1, 30)), min_size=1, max_size=4),
)
def test_capacity_is_the_largest_that_fits(
    block_size: int, num_blocks: int, windows: list[int | None]
) -> None:
    paging = Paging(SchedulerConfig(block_size, num_blocks), tuple(map(CacheGroup, windows)))
    most = paging.capacity_tokens(300)
    assert all(paging.blocks_for(n) <= num_blocks for n in range(most + 1))
    assert most == 300 or paging.blocks_for(most + 1) > num_blocks
