"""The header of a GGUF file (versions 2 and 3, little-endian), read as if its author were hostile.

Every count, length and offset is held against the file's size before anything is read or
allocated for it: what is allocated is bounded by a small multiple of the header's own bytes.
Arrays are checked in one pass and decoded when asked for (`GgufArray`), so that a vocabulary of
262,144 strings costs one scan and no strings until the tokenizer wants them.

Format: ggml's docs/gguf.md.

    magic "GGUF" | version u32 | tensor_count u64 | metadata_count u64
    metadata:  key string | type u32 | value              (string = u64 length + UTF-8)
    tensors:   name string | num_dims u32 | dims u64... (innermost first) | type u32 | offset u64
    padding to `general.alignment` | data
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn, overload

from ridgeline.facts.errors import MalformedFile, UnsupportedFeature
from ridgeline.facts.ggml import UNSUPPORTED_TYPES, GgmlType

MAGIC = b"GGUF"
MAX_DIMS = 4
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 1_024
MAX_ALIGNMENT = 1 << 16
MAX_VALUES = 1 << 48

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_TYPE_NUMBERS = frozenset(int(kind) for kind in GgmlType)
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SMALLEST_ENTRY = 8 + 1 + 4 + 1
"""Bytes of the shortest possible metadata entry (and less than the shortest tensor entry)."""


class GgufArray(Sequence[Any]):
    """An array in the metadata: checked, but left in the file until it is read.

    Indexing or iterating decodes the whole array once and keeps it. Raises MalformedFile when a
    string is not UTF-8.
    """

    __slots__ = ("_buffer", "_count", "_items", "_key", "_kind", "_offset", "_path")

    def __init__(self, path: str, key: str, buffer: mmap.mmap, offset: int, count: int, kind: int) -> None:
        self._path, self._key, self._buffer = path, key, buffer
        self._offset, self._count, self._kind = offset, count, kind
        self._items: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return self._count

    def raw_strings(self) -> list[bytes]:
        """The elements' bytes, for arrays of strings."""
        unpack, buffer, position = _U64.unpack_from, self._buffer, self._offset
        items: list[bytes] = []
        append = items.append
        for _ in range(self._count):
            (length,) = unpack(buffer, position)
            position += 8
            append(buffer[position : position + length])
            position += length
        return items

    def items(self) -> tuple[Any, ...]:
        """All elements, decoded."""
        if self._items is None:
            self._items = tuple(self._decode())
        return self._items

    def _decode(self) -> Sequence[Any]:
        if self._kind == _STRING:
            try:
                return [str(raw, "utf-8") for raw in self.raw_strings()]
            except UnicodeDecodeError as error:
                message = f"not UTF-8: {error.reason}"
                raise MalformedFile(self._path, self._key, self._offset, message) from None
        code = _SCALARS[self._kind].format[1:]
        return struct.unpack_from(f"<{self._count}{code}", self._buffer, self._offset)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Any, ...]: ...

    def __getitem__(self, index: int | slice) -> Any:
        return self.items()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items())

    def __repr__(self) -> str:
        return f"GgufArray({self._key!r}, {self._count} elements)"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `shape` outermost first (rows, columns), `offset` from the file's start in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All a GGUF file says before its data. Array values of `metadata` are `GgufArray`."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    file_size: int
    alignment: int
    path: str
    buffer: mmap.mmap = field(repr=False, compare=False)

    def tensor(self, name: str) -> GgufTensor | None:
        """The tensor of that name, if there is one."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

    def floats(self, tensor: GgufTensor) -> tuple[float, ...]:
        """Values of a small F32 tensor, flat (rope factors). Raises UnsupportedFeature for other types."""
        if tensor.type is not GgmlType.F32:
            raise UnsupportedFeature(f"type of {tensor.name}", tensor.type.name, "only F32 is expected here")
        return struct.unpack_from(f"<{tensor.num_bytes // 4}f", self.buffer, tensor.offset)


def read_gguf_header(path: str | Path) -> GgufHeader:
    """Read and check the header of the GGUF file at `path`.

    Raises:
        MalformedFile: a field cannot be true; names the field and its byte offset.
        UnsupportedFeature: version, byte order or tensor type that is not read here.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        if file.seek(0, 2) < 24:
            raise MalformedFile(path, "file size", None, "too short for a GGUF header (24 bytes)")
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _Reader(str(path), buffer).header()


class _Reader:
    """A cursor over the mapped file that refuses to pass its end."""

    def __init__(self, path: str, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.position = 0

    def header(self) -> GgufHeader:
        version = self._preamble()
        num_tensors = self._count("tensor_count")
        num_metadata = self._count("metadata_count")
        metadata = self._metadata(num_metadata)
        alignment = self._alignment(metadata)
        tensors_at = self.position
        entries = [self._tensor_entry(i) for i in range(num_tensors)]
        data_offset = -(-self.position // alignment) * alignment
        if num_tensors and data_offset > self.size:
            self._refuse("data_offset", tensors_at, f"data would start at {data_offset} of {self.size} bytes")
        tensors = self._place(entries, data_offset, alignment)
        return GgufHeader(
            version, metadata, tensors, data_offset, self.size, alignment, self.path, self.buffer
        )

    # -- parts of the file, in their order --

    def _preamble(self) -> int:
        if self.buffer[:4] != MAGIC:
            self._refuse("magic", 0, f"expected {MAGIC!r}, found {self.buffer[:4]!r}: not a GGUF file")
        self.position = 4
        version = int(self._scalar("version", _U32))
        if version & 0xFFFF == 0 and version >> 24 in (1, 2, 3):
            raise UnsupportedFeature("byte order", "big-endian", "convert the file to little-endian")
        if version == 1:
            raise UnsupportedFeature("GGUF version", 1, "versions 2 and 3 are read")
        if version not in (2, 3):
            self._refuse("version", 4, f"{version} is unknown; versions 2 and 3 are read")
        return version

    def _count(self, name: str) -> int:
        at = self.position
        count = int(self._scalar(name, _U64))
        if count * _SMALLEST_ENTRY > self.size:
            self._refuse(name, at, f"{count} entries cannot fit in a file of {self.size} bytes")
        return count

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(count):
            at = self.position
            key = self._string(f"metadata key {index}", MAX_KEY_BYTES)
            if not key:
                self._refuse(f"metadata key {index}", at, "is empty")
            if key in metadata:
                self._refuse(key, at, "key appears twice")
            metadata[key] = self._value(key, int(self._scalar(f"{key} type", _U32)))
        return metadata

    def _value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(key, _SCALARS[kind])
        if kind == _STRING:
            return self._string(key, self.size)
        if kind != _ARRAY:
            self._refuse(key, self.position - 4, f"value type {kind} is unknown")
        return self._array(key)

    def _array(self, key: str) -> GgufArray:
        at = self.position
        kind = int(self._scalar(f"{key} element type", _U32))
        count = int(self._scalar(f"{key} length", _U64))
        if kind == _ARRAY:
            self._refuse(key, at, "arrays of arrays are not read")
        if kind not in _SCALARS and kind != _STRING:
            self._refuse(key, at, f"element type {kind} is unknown")
        smallest = 8 if kind == _STRING else _SCALARS[kind].size
        if count * smallest > self.size - self.position:
            self._refuse(key, at + 4, f"{count} elements do not fit in the {self.size} bytes of the file")
        start = self.position
        self.position = self._skip_strings(key, count) if kind == _STRING else start + count * smallest
        return GgufArray(self.path, key, self.buffer, start, count, kind)

    def _skip_strings(self, key: str, count: int) -> int:
        """The position after `count` strings, each checked to end inside the file."""
        unpack, buffer, position = _U64.unpack_from, self.buffer, self.position
        try:
            for _ in range(count):
                position += 8 + unpack(buffer, position)[0]
        except (struct.error, OverflowError):
            position = self.size + 1
        if position > self.size:
            self._refuse(key, self.position, "a string of the array ends past the end of the file")
        return position

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", 32)
        sane = isinstance(alignment, int) and not isinstance(alignment, bool)
        if not sane or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            message = f"{alignment!r} is not a power of two of at most {MAX_ALIGNMENT}"
            self._refuse("general.alignment", None, message)
        return int(alignment)

    def _tensor_entry(self, index: int) -> tuple[str, tuple[int, ...], GgmlType, int, int]:
        """Name, shape (outermost first), type, offset within the data, and where the offset field stands."""
        at = self.position
        name = self._string(f"name of tensor {index}", MAX_NAME_BYTES)
        if not name:
            self._refuse(f"name of tensor {index}", at, "is empty")
        at = self.position
        num_dims = int(self._scalar(f"{name} num_dims", _U32))
        if not 1 <= num_dims <= MAX_DIMS:
            self._refuse(f"{name} num_dims", at, f"{num_dims} is not between 1 and {MAX_DIMS}")
        dims = [int(self._scalar(f"{name} dims", _U64)) for _ in range(num_dims)]
        if not all(dims) or prod(dims) > MAX_VALUES:
            self._refuse(f"{name} dims", at + 4, f"{dims} has a zero or overflows")
        at = self.position
        kind = self._tensor_type(name, int(self._scalar(f"{name} type", _U32)), at)
        if dims[0] % kind.block_size:
            message = f"{dims[0]} columns do not fill blocks of {kind.block_size} ({kind.name})"
            self._refuse(f"{name} dims", at, message)
        at = self.position
        return name, tuple(reversed(dims)), kind, int(self._scalar(f"{name} offset", _U64)), at

    def _tensor_type(self, name: str, number: int, at: int) -> GgmlType:
        if number in UNSUPPORTED_TYPES:
            supported = ", ".join(kind.name for kind in GgmlType)
            raise UnsupportedFeature(
                f"type of tensor {name}", UNSUPPORTED_TYPES[number], f"read are {supported}"
            )
        if number not in _TYPE_NUMBERS:
            self._refuse(f"{name} type", at, f"{number} is unknown")
        return GgmlType(number)

    def _place(
        self, entries: list[tuple[str, tuple[int, ...], GgmlType, int, int]], data_offset: int, alignment: int
    ) -> tuple[GgufTensor, ...]:
        """Tensors with absolute offsets: inside the file, aligned, apart from each other, names unique."""
        tensors: dict[str, GgufTensor] = {}
        fields: list[tuple[int, int, str, int]] = []
        for name, shape, kind, offset, at in entries:
            num_bytes = kind.num_bytes(prod(shape))
            start = data_offset + offset
            if name in tensors:
                self._refuse(f"{name} name", at, "tensor appears twice")
            if offset % alignment:
                self._refuse(f"{name} offset", at, f"{offset} is not a multiple of the alignment {alignment}")
            if start + num_bytes > self.size:
                message = f"tensor ends at byte {start + num_bytes} of a file of {self.size}"
                self._refuse(f"{name} offset", at, message)
            tensors[name] = GgufTensor(name, shape, kind, start, num_bytes)
            fields.append((start, start + num_bytes, name, at))
        fields.sort()
        for (_, end, first, _), (start, _, second, at) in pairwise(fields):
            if start < end:
                self._refuse(f"{second} offset", at, f"overlaps tensor {first}")
        return tuple(tensors.values())

    # -- primitives --

    def _scalar(self, name: str, layout: struct.Struct) -> Any:
        end = self.position + layout.size
        if end > self.size:
            self._refuse(name, self.position, "the file ends here")
        (value,) = layout.unpack_from(self.buffer, self.position)
        self.position = end
        return value

    def _string(self, name: str, limit: int) -> str:
        at = self.position
        length = int(self._scalar(f"{name} length", _U64))
        if length > limit:
            self._refuse(name, at, f"length of {length} bytes is over the limit of {limit}")
        if length > self.size - self.position:
            self._refuse(name, at, f"length of {length} bytes ends past the end of the file")
        raw = self.buffer[self.position : self.position + length]
        self.position += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self._refuse(name, at, f"not UTF-8: {error.reason}")

    def _refuse(self, name: str, offset: int | None, message: str) -> NoReturn:
        raise MalformedFile(self.path, name, offset, message)
