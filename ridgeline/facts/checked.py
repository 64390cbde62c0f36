"""Typed, bounded reading of a mapping that somebody else wrote (config.json, GGUF metadata)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ridgeline.facts.errors import MalformedFile

MAX_LAYERS = 1_024
MAX_WIDTH = 1 << 20
MAX_HEADS = 4_096
MAX_VOCABULARY = 1 << 24
MAX_CONTEXT = 1 << 31

_MISSING: Any = object()


class Checked:
    """Looks values up by key, under an optional prefix, and refuses what has the wrong type or size.

    A key whose value is None counts as missing. Raises MalformedFile(name, key, None, ...).
    """

    def __init__(self, values: Mapping[str, Any], name: str, prefix: str = "") -> None:
        self.values, self.name, self.prefix = values, name, prefix

    def get(self, key: str) -> Any:
        return self.values.get(self.prefix + key)

    def refuse(self, key: str, message: str) -> MalformedFile:
        """The error that says so; the caller raises it."""
        return MalformedFile(self.name, self.prefix + key, None, message)

    def integer(self, key: str, low: int, high: int, default: Any = _MISSING) -> Any:
        """An int in [low, high], or `default` where the key is missing."""
        value = self.get(key)
        if value is None:
            return self._default(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(key, f"expected an integer, found {_shown(value)}")
        if not low <= value <= high:
            raise self.refuse(key, f"{value} is not between {low} and {high}")
        return value

    def number(self, key: str, low: float, high: float, default: Any = _MISSING) -> Any:
        """A finite float in [low, high], or `default` where the key is missing."""
        value = self.get(key)
        if value is None:
            return self._default(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refuse(key, f"expected a number, found {_shown(value)}")
        if not (low <= value <= high) or not math.isfinite(value):
            raise self.refuse(key, f"{value} is not between {low} and {high}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(key, f"expected true or false, found {_shown(value)}")
        return value

    def text(self, key: str, default: Any = _MISSING) -> Any:
        value = self.get(key)
        if value is None:
            return self._default(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, f"expected text, found {_shown(value)}")
        return value

    def section(self, key: str) -> Checked | None:
        """The mapping under `key`, or None."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.refuse(key, f"expected an object, found {_shown(value)}")
        return Checked(value, f"{self.name} {self.prefix}{key}")

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """One token id below `vocab_size` or a list of them; () where missing."""
        value = self.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise self.refuse(key, f"{_shown(token)} is not a token id of a vocabulary of {vocab_size}")
        return tuple(ids)

    def _default(self, key: str, default: Any) -> Any:
        if default is _MISSING:
            raise self.refuse(key, "is missing")
        return default


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
