"""From the recorded graph to a tape: fuse, decide what happens in place, lay out the arena, append ops.

Fusions, all invisible to the model:

    rms_norm -> linear | gated_mlp | logits      the norm is applied while the rows are quantised
    linear | gated_mlp -> add                    the residual is added where the product is finished
    gated_mlp                                    act(gate) * up where the gate_up product is finished
    split                                        a view: an offset into the row
    rope, rms_norm of a view, add                in place when nobody reads the old value later

A fused node has no instruction of its own; it happens when its reader does (`_Schedule.moment`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ridgeline.facts.kv_layout import KvLayout
from ridgeline.facts.model_spec import RopeSpec
from ridgeline.runtime.native.arena import Value, lay_out
from ridgeline.runtime.native.ops import Node
from ridgeline.runtime.ops import AttentionSpec

ROW_SLACK = 32
"""Tile loads may read this many quantised rows beyond the last (kRowSlack of csrc/linear_args.hpp)."""
FLOAT_BYTES = 4
QUANTISING = ("linear", "gated_mlp", "logits")


@dataclass(frozen=True, slots=True)
class Limits:
    """What sizes the arena: the most tokens of a step."""

    max_tokens: int


class View(NamedTuple):
    """Features `start ..` of a value's rows."""

    value: Value
    start: int

    @property
    def place(self) -> tuple[int, int]:
        """(offset in bytes, stride in floats), once the arena is laid out."""
        return self.value.offset + self.start * FLOAT_BYTES, self.value.row_bytes // FLOAT_BYTES


class Instruction(NamedTuple):
    """`append(tape)` adds the op; it runs after the arena is laid out."""

    append: Callable[[Any], None]


Angles = Callable[[RopeSpec], tuple[Any, Any]]
"""The (cos, sin) constants of a rope, `[positions, rotary_dim / 2]`."""


class Lowering:
    """One graph on its way to a tape. `cache` is a `_native.KvPool` laid out by `layout`."""

    def __init__(
        self, nodes: Sequence[Node], limits: Limits, layout: KvLayout, cache: Any, angles: Angles
    ) -> None:
        self._nodes = nodes
        self._limits = limits
        self._layout = layout
        self._cache = cache
        self._angles = angles
        self._values: list[Value] = []
        self._instructions: list[Instruction] = []
        self._views: dict[Node, View] = {}
        self._fused = {node: reader for node in nodes if (reader := _fused_into(node))}

    def instructions(self) -> tuple[list[Instruction], int]:
        """The ops in order, and the arena's bytes."""
        for node in self._nodes:
            if node not in self._fused:
                self._lower(node)
        return self._instructions, lay_out(self._values)

    def _lower(self, node: Node) -> None:
        lower = getattr(self, f"_lower_{node.op}")
        lower(node)

    # ---- One method an op ----

    def _lower_embed(self, node: Node) -> None:
        y = self._new(node)
        self._emit([y], lambda t: t.embed(node.arguments["table"], node.arguments["scale"], y.place))

    def _lower_rms_norm(self, node: Node) -> None:
        x = self._view(node.inputs[0])
        y = self._in_place(node, node.inputs[0]) or self._new(node)
        weight, eps = node.arguments["weight"], node.arguments["eps"]
        groups, rows = node.width // weight.size, node.on_logit_rows
        self._emit([x, y], lambda t: t.rms_norm(x.place, y.place, weight.constant, groups, eps, rows))

    def _lower_split(self, node: Node) -> None:
        x = self._view(node.inputs[0])
        self._views[node] = View(x.value, x.start + node.arguments["start"])

    def _lower_linear(self, node: Node) -> None:
        self._product(node, self._new(node), None)

    def _lower_gated_mlp(self, node: Node) -> None:
        self._product(node, self._new(node), None)

    def _lower_add(self, node: Node) -> None:
        x, z = node.inputs
        if self._fused.get(x) is node and self._fused.get(z) is not node:
            x, z = z, x
        residual = self._view(x)
        y = self._in_place(node, x) or self._new(node)
        if self._fused.get(z) is node:
            self._product(z, y, residual)
            return
        other, width, rows = self._view(z), node.width, node.on_logit_rows
        self._emit([residual, other, y], lambda t: t.add(residual.place, other.place, y.place, width, rows))

    def _lower_rope(self, node: Node) -> None:
        rope: RopeSpec = node.arguments["rope"]
        head_dim = node.arguments["head_dim"]
        x = self._in_place(node, node.inputs[0])
        if x is None:
            raise ValueError("rope: its input is read again afterwards; the native backend rotates in place")
        cos, sin = self._angles(rope)
        heads = node.width // head_dim
        self._emit([x], lambda t: t.rope(x.place, heads, head_dim, rope.rotary_dim, cos, sin))

    def _lower_attention(self, node: Node) -> None:
        spec: AttentionSpec = node.arguments["spec"]
        q, k, v = (self._view(x) for x in node.inputs)
        y = self._new(node)
        group, slot = self._layout.place(spec.layer)
        rest = (self._cache, group, slot, spec.num_heads, spec.scale, spec.window or 0, spec.softcap or 0.0)
        self._emit([q, k, v, y], lambda t: t.attention(q.place, k.place, v.place, y.place, *rest))

    def _lower_select(self, node: Node) -> None:
        x, y, width = self._view(node.inputs[0]), self._new(node), node.width
        self._emit([x, y], lambda t: t.select(x.place, y.place, width))

    def _lower_logits(self, node: Node) -> None:
        head, softcap = node.arguments["head"], node.arguments["softcap"]
        rows = self._quantised(node.inputs[0], head)
        self._emit([rows], lambda t: t.logits(rows.value.offset, head, softcap))

    # ---- Products ----

    def _product(self, node: Node, y: View, residual: View | None) -> None:
        """The linear or gated_mlp of `node` into `y`, plus `residual` if given."""
        on_logit_rows = node.on_logit_rows
        if node.op == "linear":
            weight = node.arguments["weight"]
            rows = self._quantised(node.inputs[0], weight)
        else:
            weight = node.arguments["down"]
            rows = self._gated_rows(node)
        if residual is None:
            self._emit(
                [rows, y],
                lambda t: t.linear(rows.value.offset, weight, y.place, "store", None, on_logit_rows),
            )
            return
        self._emit(
            [rows, y, residual],
            lambda t: t.linear(rows.value.offset, weight, y.place, "residual", residual.place, on_logit_rows),
        )

    def _gated_rows(self, node: Node) -> View:
        """act(gate) * up, quantised for `down`."""
        gate_up, down = node.arguments["gate_up"], node.arguments["down"]
        activation, on_logit_rows = node.arguments["activation"], node.on_logit_rows
        rows = self._quantised(node.inputs[0], gate_up)
        hidden = self._floats(down.num_inputs)
        self._emit(
            [rows, hidden],
            lambda t: t.linear(rows.value.offset, gate_up, hidden.place, activation, None, on_logit_rows),
        )
        return self._quantise(hidden, down, None, 0.0, on_logit_rows)

    def _quantised(self, x: Node, consumer: Any) -> View:
        """Rows of `x` as `consumer` multiplies them; a fused norm is applied on the way."""
        if x in self._fused:
            source = self._view(x.inputs[0])
            norm, eps = x.arguments["weight"].constant, x.arguments["eps"]
            return self._quantise(source, consumer, norm, eps, x.on_logit_rows)
        return self._quantise(self._view(x), consumer, None, 0.0, x.on_logit_rows)

    def _quantise(self, x: View, consumer: Any, norm: Any, eps: float, on_logit_rows: bool) -> View:
        num_rows = self._limits.max_tokens + ROW_SLACK
        rows = View(Value(num_rows * consumer.row_bytes, consumer.row_bytes), 0)
        self._values.append(rows.value)
        self._emit(
            [x, rows], lambda t: t.quantize(x.place, rows.value.offset, consumer, norm, eps, on_logit_rows)
        )
        return rows

    # ---- Values ----

    def _floats(self, width: int) -> View:
        """A new value of `width` floats a row."""
        row_bytes = width * FLOAT_BYTES
        value = Value(self._limits.max_tokens * row_bytes, row_bytes)
        self._values.append(value)
        return View(value, 0)

    def _new(self, node: Node) -> View:
        self._views[node] = self._floats(node.width)
        return self._views[node]

    def _view(self, node: Node) -> View:
        return self._views[node]

    def _in_place(self, node: Node, x: Node) -> View | None:
        """The view of `x`, now `node`'s, if every other reader of `x` has run by then.

        A reader that is fused into `node` reads before `node` writes.
        """
        if any(self._moment(user) > self._moment(node) for user in x.users):
            return None
        if x.op == "split" and any(
            self._moment(user) > self._moment(node) for user in x.inputs[0].users if user.op != "split"
        ):
            return None
        self._views[node] = self._views[x]
        return self._views[node]

    def _moment(self, node: Node) -> int:
        """When the node runs, as the index of the node that it is fused into (or its own).

        A split runs never: what counts is who reads its pieces.
        """
        if node.op == "split":
            return max((self._moment(user) for user in node.users), default=-1)
        while node in self._fused:
            node = self._fused[node]
        return node.index

    def _emit(self, touched: Sequence[View], append: Callable[[Any], None]) -> None:
        for view in touched:
            view.value.touch(len(self._instructions))
        self._instructions.append(Instruction(append))


def _fused_into(node: Node) -> Node | None:
    """The reader that absorbs `node`, if it has exactly one and that one can."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if node.op == "rms_norm" and node.arguments["weight"].size == node.width and user.op in QUANTISING:
        return user
    if node.op in ("linear", "gated_mlp") and user.op == "add" and user.inputs[0] is not user.inputs[1]:
        # Of two products that meet in one add, the second is fused.
        other = user.inputs[0] if user.inputs[1] is node else user.inputs[1]
        both = other.op in ("linear", "gated_mlp") and len(other.users) == 1
        return None if both and user.inputs[0] is node else user
    return None
