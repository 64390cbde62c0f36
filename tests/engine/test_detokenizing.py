from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.engine.detokenizing import Detokenizer


def one_byte(token: int) -> bytes:
    return bytes([token])


def stream(data: bytes, *cuts: int, **options: object) -> list[str]:
    """Feed bytes as tokens, in pieces cut at `cuts`, then flush."""
    detokenizer = Detokenizer(one_byte, **options)  # type: ignore[arg-type]
    edges = [0, *sorted(cuts), len(data)]
    pieces = [detokenizer.feed(data[a:b]) for a, b in itertools.pairwise(edges)]
    return [*pieces, detokenizer.flush()]


@given(st.text(), st.lists(st.integers(0, 40)))
def test_text_comes_out_whole_however_it_is_cut(text: str, cuts: list[int]) -> None:
    assert "".join(stream(text.encode(), *cuts)) == text


@given(st.binary())
def test_arbitrary_bytes_decode_as_at_once(data: bytes) -> None:
    assert "".join(stream(data, *range(len(data)))) == data.decode("utf-8", "replace")


def test_no_half_character_leaves() -> None:
    data = "né🙂日".encode()
    assert stream(data, *range(1, len(data))) == ["n", "", "é", "", "", "", "🙂", "", "", "日", ""]


def test_unfinished_character_comes_at_the_end() -> None:
    assert stream("🙂".encode()[:3]) == ["", "�"]


@given(
    st.text("ab🙂", max_size=30),
    st.lists(st.text("ab🙂", min_size=1, max_size=4), min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.integers(0, 60)),
)
def test_stop_strings_by_definition(text: str, stops: list[str], include: bool, cuts: list[int]) -> None:
    """The stop whose last character comes first wins, the longest of those; nothing of it leaks early."""
    pieces = stream(text.encode(), *cuts, stop=stops, include_stop=include)
    ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert "".join(pieces) == text
        return
    end, _, winner = min(ends)
    assert "".join(pieces) == text[: end if include else end - len(winner)]
    assert pieces[-1] == ""


@given(st.text("ab", max_size=20), st.text("ab", min_size=1, max_size=4))
def test_exactly_what_may_become_a_stop_is_held_back(text: str, stop: str) -> None:
    detokenizer = Detokenizer(one_byte, [stop])
    emitted = ""
    for count, byte in enumerate(text.encode(), 1):
        emitted += detokenizer.feed([byte])
        if detokenizer.matched_stop is not None:
            break
        held = max(n for n in range(len(stop)) if text[:count].endswith(stop[:n]))
        assert emitted == text[: count - held]


def test_min_tokens_delays_stop_strings() -> None:
    assert "".join(stream(b"xAyAz", stop=["A"], min_tokens=3)) == "xAy"
    assert "".join(stream(b"xxAzz", stop=["A"], min_tokens=3)) == "xx"


def test_a_stop_that_began_before_min_tokens_counts_when_completed_after() -> None:
    assert "".join(stream(b"xABCz", stop=["ABC"], min_tokens=4)) == "x"


def test_after_a_match_nothing_more_comes() -> None:
    detokenizer = Detokenizer(one_byte, ["\n"])
    assert detokenizer.feed(b"ab\ncd") == "ab"
    assert detokenizer.matched_stop == "\n"
    assert detokenizer.num_tokens == 3
    assert detokenizer.feed(b"ef") == ""
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("stop", [(), ("a" * 1000 + "b", "aab" * 300)])
def test_time_is_linear(stop: tuple[str, ...]) -> None:
    """Old text is not looked at again: 8 times the tokens, about 8 times the time."""

    def seconds(count: int) -> float:
        detokenizer = Detokenizer(one_byte, stop)
        start = time.process_time()
        for _ in range(count):
            detokenizer.feed(b"a")
        return time.process_time() - start

    small = min(seconds(4_000) for _ in range(5))
    large = min(seconds(32_000) for _ in range(3))
    assert large < 24 * small
