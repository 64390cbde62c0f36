"""Bodies that Python's json would take and we do not: bad_inputs, row "deep/huge JSON body"."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.serve.errors import ApiError
from ridgeline.serve.json_body import parse_json, printable


def refused(raw: bytes, max_depth: int = 16) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_json(raw, max_depth)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "empty"),
        (b"{", "do not match|not valid JSON"),
        (b'{"a":1,}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "UTF-8"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"\\udfff":1}', "surrogate"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "Infinity"),
        (b'{"a":1e999}', "too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "digits"),
        (b'{"a":1,"b":2,"a":3}', "twice"),
        (b'{"a":{"b":1,"b":1}}', "twice"),
        (b"'a'", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
    ],
)
def test_refused(raw: bytes, says: str) -> None:
    message = refused(raw).message
    assert any(word in message for word in says.split("|")), message


@pytest.mark.parametrize("pair", [b"[]", b"{}"])
def test_depth_is_exact(pair: bytes) -> None:
    opening, closing = (b"[", b"]") if pair == b"[]" else (b'{"a":', b"}")
    inner = b"1"
    parse_json(opening * 16 + inner + closing * 16, 16)
    assert "deeper than 16" in refused(opening * 17 + inner + closing * 17).message


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 8_000_000,
        b"[]" * 4_000_000,
        b"[" + b"[]," * 2_500_000 + b"[]]",
        b'{"a":' * 1_000_000,
        b'"' + b'\\"' * 4_000_000,
        b'"\\' * 4_000_000,
        b'[[[[[[[[[[[[[[[[[["' + b"\\" * 7_999_999,
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=["open", "pairs", "wide", "objects", "quotes", "backslashes", "tail", "deep"],
)
def test_bombs_are_refused_quickly(raw: bytes) -> None:
    started_s = time.process_time()
    refused(raw)
    assert time.process_time() - started_s < 2.0


def test_brackets_inside_strings_do_not_count() -> None:
    text = "[{" * 1000 + '\\"'
    body = {"a": text, "b": ["]}"] * 40, "c": [[1]] * 20}
    assert parse_json(json.dumps(body).encode(), 16) == body


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=40,
    )
)
def test_agrees_with_json_on_what_is_fine(body: object) -> None:
    for ascii_only in (True, False):
        assert parse_json(json.dumps(body, ensure_ascii=ascii_only).encode(), 64) == body


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_400(raw: bytes) -> None:
    try:
        parse_json(raw, 8)
    except ApiError as error:
        assert error.status == 400
        json.dumps(error.body).encode()


@given(st.text())
def test_quoted_back_text_is_harmless(text: str) -> None:
    assert printable(text).isascii()
    assert len(printable(text)) <= 67
