"""The roofline: what bounds each operation of a step, and the least time that it can take.

    attainable operations a second = min(peak, intensity x bandwidth)        intensity = operations / bytes

After S. Williams, A. Waterman and D. Patterson, "Roofline: an insightful visual performance model for
multicore architectures", CACM 52(4), 2009. Here it is a floor of time: an operation takes at least
bytes / bandwidth and at least operations / peak, so at least the larger of the two.

Only bytes that must come from memory count: weights once a step, keys and values once a sequence, what
is written to the cache. Activations are taken to stay in the processor's own caches, which only lowers
the floor. The ceilings are measured (`ridgeline roofline`), never taken from a data sheet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ridgeline.facts.formulas import held_matrices, matrices
from ridgeline.facts.model_spec import ModelSpec
from ridgeline.facts.precision import Precision, Weights

Unit = Literal["float32", "vnni_int8", "amx_int8", "amx_bf16"]
Phase = Literal["decode", "prefill"]
Bound = Literal["memory", "compute"]

UNITS: tuple[Unit, ...] = ("float32", "vnni_int8", "amx_int8", "amx_bf16")
OPERATIONS = ("qkv", "attention", "output", "gate_up", "down", "head")


@dataclass(frozen=True, slots=True)
class BandwidthPoint:
    """Bytes a second that `num_threads` threads together read of `working_set_bytes`, over and over."""

    num_threads: int
    working_set_bytes: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class PeakPoint:
    """Operations a second (a multiply-add is two) of a unit, all threads together."""

    num_threads: int
    unit: Unit
    operations_per_s: float


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What one machine can do at most."""

    tier: str
    bandwidth: tuple[BandwidthPoint, ...]
    peaks: tuple[PeakPoint, ...]

    def bytes_per_s(self, num_threads: int, num_bytes: float) -> float:
        """Bandwidth for a step that touches `num_bytes` and then starts over.

        That of the smallest measured working set that is at least as large, else of the largest.
        Raises KeyError when nothing was measured with that many threads.
        """
        points = [point for point in self.bandwidth if point.num_threads == num_threads]
        if not points:
            raise KeyError(f"no bandwidth was measured with {num_threads} threads")
        points.sort(key=lambda point: point.working_set_bytes)
        for point in points:
            if point.working_set_bytes >= num_bytes:
                return point.bytes_per_s
        return points[-1].bytes_per_s

    def operations_per_s(self, num_threads: int, unit: Unit) -> float:
        """Peak of a unit. Raises KeyError when it was not measured (the tier lacks it)."""
        for point in self.peaks:
            if point.num_threads == num_threads and point.unit == unit:
                return point.operations_per_s
        raise KeyError(f"no peak of {unit} was measured with {num_threads} threads")

    def units(self, num_threads: int) -> tuple[Unit, ...]:
        """Units measured with that many threads."""
        return tuple(point.unit for point in self.peaks if point.num_threads == num_threads)


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of operation over all layers of a step. `operations` counts multiply-adds times two."""

    name: str
    phase: Phase
    num_bytes: int
    operations: int
    unit: Unit

    @property
    def intensity(self) -> float:
        """Operations for each byte from memory."""
        return self.operations / self.num_bytes


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time of an operation, and which of the two ceilings it is."""

    operation: Operation
    memory_s: float
    compute_s: float

    @property
    def seconds(self) -> float:
        return max(self.memory_s, self.compute_s)

    @property
    def bound(self) -> Bound:
        return "memory" if self.memory_s >= self.compute_s else "compute"


def unit_for(precision: Precision, units: Iterable[Unit]) -> Unit:
    """The fastest unit among `units` that multiplies weights of this precision."""
    wanted: dict[Precision, tuple[Unit, ...]] = {
        "int4": ("amx_int8", "vnni_int8"),
        "int8": ("amx_int8", "vnni_int8"),
        "bf16": ("amx_bf16",),
        "float32": (),
    }
    available = set(units)
    return next((unit for unit in wanted[precision] if unit in available), "float32")


def step_operations(
    spec: ModelSpec,
    phase: Phase,
    *,
    batch: int,
    context: int,
    weights: Weights,
    head_weights: Weights,
    kv_bytes_per_element: float,
    units: Iterable[Unit],
) -> tuple[Operation, ...]:
    """The operations of one step, each summed over the layers, in the order of `OPERATIONS`.

    decode: `batch` sequences compute one token each after `context` others. prefill: `batch` sequences
    compute `context` tokens each after none; logits of the last of each. Matrices of one kind that are held
    in several precisions count as multiplied by the unit of most of their bytes.
    """
    units = tuple(units)
    tokens = batch if phase == "decode" else batch * context
    parts = {}
    for kind in [*(kind for kind, _, _ in matrices(spec)), "head"]:
        held = [each for each in held_matrices(spec, weights, head_weights) if each.kind == kind]
        parts[kind] = Operation(
            kind,
            phase,
            sum(each.num_bytes for each in held),
            2 * sum(each.num_values for each in held) * (batch if kind == "head" else tokens),
            unit_for(max(held, key=lambda each: each.num_bytes).precision, units),
        )
    parts["attention"] = _attention(spec, phase, batch, context, kv_bytes_per_element, units)
    return tuple(parts[name] for name in OPERATIONS)


def _attention(
    spec: ModelSpec, phase: Phase, batch: int, context: int, kv_bytes: float, units: tuple[Unit, ...]
) -> Operation:
    """QK^T and PV: 4 x heads x head_dim for each visible pair; K and V of a sequence are read once."""
    pairs = visible = 0
    for layer in spec.layers:
        pairs += visible_pairs(phase, context, layer.window)
        seen = context + (phase == "decode")
        visible += seen if layer.window is None or phase == "prefill" else min(seen, layer.window)
    element_bytes = 2 * spec.num_kv_heads * spec.head_dim * kv_bytes
    return Operation(
        "attention",
        phase,
        int(batch * visible * element_bytes),
        4 * spec.num_heads * spec.head_dim * batch * pairs,
        unit_for("bf16", units),
    )


def visible_pairs(phase: Phase, context: int, window: int | None) -> int:
    """(query, key) pairs of one sequence in one layer, each position seeing itself and those before it.

    decode: the one new token. prefill: a triangle, cut to a band by a window w: n w - w (w - 1) / 2.
    """
    if phase == "decode":
        return context + 1 if window is None else min(context + 1, window)
    if window is None or window >= context:
        return context * (context + 1) // 2
    return context * window - window * (window - 1) // 2


def floors(operations: Iterable[Operation], ceilings: Ceilings, num_threads: int) -> tuple[Floor, ...]:
    """The floor of each operation; bandwidth is that of the whole step's bytes.

    Raises KeyError when a ceiling is missing.
    """
    operations = tuple(operations)
    bytes_per_s = ceilings.bytes_per_s(num_threads, sum(each.num_bytes for each in operations))
    return tuple(
        Floor(
            each,
            each.num_bytes / bytes_per_s,
            each.operations / ceilings.operations_per_s(num_threads, each.unit),
        )
        for each in operations
    )


def attainable(intensity: float, bytes_per_s: float, operations_per_s: float) -> float:
    """Operations a second under the roof at an intensity."""
    return min(operations_per_s, intensity * bytes_per_s)
