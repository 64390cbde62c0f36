"""A checkpoint as a stream of tensors, each taken once, that must end empty."""

from __future__ import annotations

from collections.abc import Iterable

from ridgeline.facts.errors import MalformedFile
from ridgeline.runtime.weights.tensor import TensorSource


class TensorStream:
    """Tensors by their Hugging Face names, in the order of the file. `take` removes."""

    def __init__(self, path: str, tensors: Iterable[TensorSource]) -> None:
        """Raises MalformedFile when two tensors have one name."""
        self.path = path
        self._tensors: dict[str, TensorSource] = {}
        for tensor in tensors:
            if tensor.name in self._tensors:
                raise MalformedFile(path, tensor.name, None, "two tensors have this name")
            self._tensors[tensor.name] = tensor

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def num_bytes(self) -> int:
        """Stored bytes of what is left."""
        return sum(tensor.data.nbytes for tensor in self._tensors.values())

    def take(self, name: str) -> TensorSource:
        """The tensor of that name, which leaves the stream.

        Raises KeyError when it is not there (any more), MalformedFile when one of its scales is not
        a finite number.
        """
        tensor = self._tensors.pop(name)
        if not tensor.has_finite_scales():
            raise MalformedFile(self.path, name, None, "a block's scale is infinite or not a number")
        return tensor

    def remaining(self) -> tuple[str, ...]:
        """Names not taken yet."""
        return tuple(self._tensors)
