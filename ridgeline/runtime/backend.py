"""The protocol of a backend: it takes weights at load and runs a model on a batch at each step.

    load     TensorSource --backend.linear/embedding/vector--> Weight   (packed, quantised: its own affair)
    once     backend.allocate_kv(layout, num_blocks)
    a step   backend.run(model, batch)  -->  model.forward(ops)  -->  logits

A model holds Weights and never looks inside; `run` decides whether `forward` is evaluated at once
(reference) or was recorded before and is replayed (native).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ridgeline.runtime.batch import Batch
from ridgeline.runtime.ops import Ops, Tensor, Weight

if TYPE_CHECKING:
    from ridgeline.engine.logprobs import RawLogprobs
    from ridgeline.facts.kv_layout import KvLayout
    from ridgeline.runtime.sampler import Sampled
    from ridgeline.runtime.slots import SamplingBatch
    from ridgeline.runtime.weights.tensor import TensorSource

LinearKind = Literal["qkv", "output", "gate_up", "down", "head"]
"""What a matrix is for, so that a backend may store kinds with different precision."""

Logits = npt.NDArray[np.float32]


class Model(Protocol):
    """What `runtime/models` makes: weights and a straight line of op calls."""

    def forward(self, ops: Ops) -> Tensor:
        """The logits of the step's `logit_rows`: `[m, vocab]`. Looks at no value and at no count."""
        ...


class Backend(Protocol):
    """Weights, cache and one step on one kind of device."""

    def linear(
        self, parts: Sequence[TensorSource], bias: Sequence[TensorSource] | None, kind: LinearKind
    ) -> Weight:
        """Matrices `[out_i, in]` stacked along rows, with their bias vectors `[out_i]` if any."""
        ...

    def embedding(self, source: TensorSource) -> Weight:
        """A table `[vocab, hidden]` for `ops.embed`."""
        ...

    def tied_head(self, embedding: Weight) -> Weight:
        """The same table used as the output head, for `ops.logits`."""
        ...

    def vector(self, source: TensorSource, offset: float = 0.0) -> Weight:
        """A norm's weights `[d]`, plus `offset`."""
        ...

    def allocate_kv(self, layout: KvLayout, num_blocks: int) -> None:
        """Make the pool of `num_blocks` pages; called once, after the weights."""
        ...

    def run(self, model: Model, batch: Batch) -> Logits:
        """Run one step: writes the KV cache, returns `[m, vocab]` float32.

        The array belongs to the caller until the next `run`; the caller may write into it.
        """
        ...

    def close(self) -> None:
        """Let threads and memory go."""
        ...


@runtime_checkable
class SamplingBackend(Protocol):
    """A backend that also samples: exactly the tokens that `runtime/sampler.py` defines."""

    def sample(self, logits: Logits, batch: SamplingBatch) -> Sampled:
        """A token for each row of `logits` `[m, vocab]`, biased and masked already (penalties are not)."""
        ...

    def logprobs_of(self, logits: Logits, tokens: npt.NDArray[np.int32], num_top: int) -> list[RawLogprobs]:
        """As `sampler.logprobs_of`."""
        ...
