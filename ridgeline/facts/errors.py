"""What can be wrong with a model's files, said by field and place."""

from __future__ import annotations

from pathlib import Path


class MalformedFile(ValueError):
    """A file says something that cannot be true. Nothing outside of it was read.

    `field` names what lied (for example `tensor_count`), `offset` is where it stands in the file
    in bytes (None when the whole file is meant).
    """

    def __init__(self, path: str | Path, field: str, offset: int | None, message: str) -> None:
        place = "" if offset is None else f" at byte {offset}"
        super().__init__(f"{path}: {field}{place}: {message}")
        self.path = str(path)
        self.field = field
        self.offset = offset
        self.reason = message


class UnsupportedFeature(ValueError):
    """A model asks for something that this version does not do. `field` and `value` name it."""

    def __init__(self, field: str, value: object, message: str = "") -> None:
        reason = f"{field} = {value!r} is not supported"
        super().__init__(f"{reason}: {message}" if message else reason)
        self.field = field
        self.value = value
