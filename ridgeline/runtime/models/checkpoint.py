"""How a model takes its tensors: by module name, with the shape it expects, until none are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Protocol

from ridgeline.engine.errors import UnsupportedModel
from ridgeline.runtime.ops import Weight

if TYPE_CHECKING:
    from ridgeline.runtime.backend import Backend, LinearKind
    from ridgeline.runtime.weights.tensor import TensorSource

SHOWN_NAMES = 5

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


class CheckpointMismatch(UnsupportedModel):
    """The checkpoint does not hold exactly the tensors of its architecture."""


class TensorStream(Protocol):
    """A checkpoint's tensors under their Hugging Face names; each is taken once."""

    def take(self, name: str) -> TensorSource:
        """Raises KeyError when it is not there (any more)."""
        ...

    @property
    def num_bytes(self) -> int:
        """Stored bytes of the tensors not taken yet."""
        ...

    def remaining(self) -> tuple[str, ...]:
        """Names not taken yet."""
        ...


class Checkpoint:
    """Hands tensors to the backend by module: `at("model.layers.0").vector("input_layernorm", d)`."""

    def __init__(self, stream: TensorStream, backend: Backend, progress: Progress | None = None) -> None:
        self.backend = backend
        self._stream = stream
        self._progress = progress
        self._num_bytes = stream.num_bytes
        self._taken_bytes = [0]  # one count for all views of the checkpoint
        self._prefix = ""

    def at(self, module: str) -> Checkpoint:
        """The same checkpoint, seen from below `module`."""
        below = copy(self)
        below._prefix = f"{self._prefix}{module}."
        return below

    def linear(
        self, kind: LinearKind, modules: Mapping[str, int], columns: int, bias: bool = False
    ) -> Weight:
        """The matrices of `modules` (name -> rows), each `[rows, columns]`, stacked as one Weight."""
        parts = [self._take(f"{name}.weight", rows, columns) for name, rows in modules.items()]
        biases = [self._take(f"{name}.bias", rows) for name, rows in modules.items()] if bias else None
        return self.backend.linear(parts, biases, kind)

    def embedding(self, module: str, rows: int, columns: int) -> Weight:
        """The table `[rows, columns]` of token vectors."""
        return self.backend.embedding(self._take(f"{module}.weight", rows, columns))

    def vector(self, module: str, size: int, offset: float = 0.0) -> Weight:
        """A norm's weight `[size]`, plus `offset`."""
        return self.backend.vector(self._take(f"{module}.weight", size), offset)

    def finish(self, *, tied_embeddings: bool = False) -> None:
        """Raise CheckpointMismatch if anything is left. A tied head may be stored twice; it counts once."""
        self._report(0)
        left = [n for n in self._stream.remaining() if not (tied_embeddings and n == "lm_head.weight")]
        if left:
            shown = ", ".join(left[:SHOWN_NAMES])
            more = f" and {len(left) - SHOWN_NAMES} more" if len(left) > SHOWN_NAMES else ""
            raise CheckpointMismatch(f"the checkpoint has tensors the model does not: {shown}{more}")

    def _take(self, name: str, *shape: int) -> TensorSource:
        name = self._prefix + name
        try:
            source = self._stream.take(name)
        except KeyError:
            raise CheckpointMismatch(f"tensor {name} is missing from the checkpoint") from None
        self._report(source.data.nbytes)
        if tuple(source.shape) != shape:
            raise CheckpointMismatch(f"tensor {name} has shape {list(source.shape)}, expected {list(shape)}")
        return source

    def _report(self, num_bytes: int) -> None:
        if self._progress is not None:
            self._progress(self._taken_bytes[0], self._num_bytes)
        self._taken_bytes[0] += num_bytes
