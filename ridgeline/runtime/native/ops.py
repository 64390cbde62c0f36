"""Records a model's `forward` as a graph: each op call becomes a node, nothing is computed.

`ridgeline.runtime.native.lowering` turns the graph into a tape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ridgeline.facts.model_spec import Activation, RopeSpec
from ridgeline.runtime.native.weight import MatrixWeight, TableWeight, VectorWeight
from ridgeline.runtime.ops import AttentionSpec

OpName = Literal[
    "embed", "rms_norm", "linear", "split", "add", "rope", "attention", "gated_mlp", "select", "logits"
]


@dataclass(eq=False, slots=True)
class Node:
    """A value: `[rows, width]`, rows being the step's tokens or (`on_logit_rows`) those with logits.

    `index` counts calls; `users` are the nodes that read the value. `arguments` are those of the op call
    besides tensors.
    """

    op: OpName
    inputs: tuple[Node, ...]
    width: int
    index: int
    on_logit_rows: bool
    arguments: dict[str, Any]
    users: list[Node] = field(default_factory=list)


class RecordingOps:
    """Implements `runtime.ops.Ops`; `nodes` holds the calls in order.

    Raises ValueError when widths do not fit, as the reference's numpy would.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def embed(self, table: TableWeight, scale: float = 1.0) -> Node:
        return self._record("embed", (), table.matrix.num_inputs, table=table.matrix, scale=scale)

    def rms_norm(self, x: Node, weight: VectorWeight, eps: float) -> Node:
        if x.width % weight.size:
            raise ValueError(f"rms_norm: {x.width} features are not groups of {weight.size}")
        return self._record("rms_norm", (x,), x.width, weight=weight, eps=eps)

    def linear(self, x: Node, weight: MatrixWeight) -> Node:
        _check_width("linear", x, weight)
        if weight.matrix.gated:
            raise ValueError("linear: the matrix was packed for gated_mlp")
        return self._record("linear", (x,), weight.matrix.num_outputs, weight=weight.matrix)

    def split(self, x: Node, *sizes: int) -> tuple[Node, ...]:
        if sum(sizes) != x.width:
            raise ValueError(f"split: {sizes} do not add up to {x.width}")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return tuple(self._record("split", (x,), size, start=start) for start, size in zip(starts, sizes))

    def add(self, x: Node, y: Node) -> Node:
        if x.width != y.width:
            raise ValueError(f"add: widths {x.width} and {y.width} differ")
        return self._record("add", (x, y), x.width)

    def rope(self, x: Node, rope: RopeSpec, head_dim: int) -> Node:
        if x.width % head_dim:
            raise ValueError(f"rope: {x.width} features are not heads of {head_dim}")
        return self._record("rope", (x,), x.width, rope=rope, head_dim=head_dim)

    def paged_attention(self, q: Node, k: Node, v: Node, spec: AttentionSpec) -> Node:
        return self._record("attention", (q, k, v), q.width, spec=spec)

    def gated_mlp(self, x: Node, gate_up: MatrixWeight, down: MatrixWeight, activation: Activation) -> Node:
        _check_width("gated_mlp", x, gate_up)
        if not gate_up.matrix.gated or down.matrix.num_inputs * 2 != gate_up.matrix.num_outputs:
            raise ValueError("gated_mlp: gate_up and down do not fit together")
        arguments = {"gate_up": gate_up.matrix, "down": down.matrix, "activation": activation}
        return self._record("gated_mlp", (x,), down.matrix.num_outputs, **arguments)

    def select_logit_rows(self, x: Node) -> Node:
        node = self._record("select", (x,), x.width)
        node.on_logit_rows = True
        return node

    def logits(self, x: Node, head: MatrixWeight, softcap: float | None = None) -> Node:
        _check_width("logits", x, head)
        return self._record("logits", (x,), head.matrix.num_outputs, head=head.matrix, softcap=softcap or 0.0)

    def _record(self, op: OpName, inputs: Sequence[Node], width: int, **arguments: Any) -> Node:
        on_logit_rows = any(x.on_logit_rows for x in inputs)
        node = Node(op, tuple(inputs), width, len(self.nodes), on_logit_rows, arguments)
        for x in dict.fromkeys(inputs):
            x.users.append(node)
        self.nodes.append(node)
        return node


def _check_width(op: str, x: Node, weight: MatrixWeight) -> None:
    if x.width != weight.matrix.num_inputs:
        raise ValueError(f"{op}: {x.width} features for a matrix of {weight.matrix.num_inputs} inputs")
