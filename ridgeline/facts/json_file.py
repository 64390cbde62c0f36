"""A JSON object out of a file that somebody else wrote: bounded in size and depth, always an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ridgeline.facts.errors import MalformedFile

MAX_CONFIG_BYTES = 16 << 20


def read_json_object(path: str | Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in the file. Raises MalformedFile when it is too big, not JSON, or not an object."""
    with open(path, "rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise MalformedFile(path, "file size", None, f"over the limit of {max_bytes} bytes")
    return parse_json_object(raw, path, "JSON", 0)


def parse_json_object(raw: bytes, path: str | Path, field: str, offset: int) -> dict[str, Any]:
    """The object in `raw`; `field` and `offset` (bytes into the file) name the place in errors."""
    try:
        value = json.loads(raw, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise MalformedFile(path, field, offset + error.pos, error.msg) from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        message = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedFile(path, field, offset, message) from None
    if not isinstance(value, dict):
        raise MalformedFile(path, field, offset, f"expected an object, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} appears twice")
    return values
