"""Measurements for `ridgeline roofline`: the machine's ceilings, and the time of each operation of a step.

Both run what a step runs: the module's own threads, pages and instructions.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ridgeline.cost.roofline import UNITS, BandwidthPoint, Ceilings, PeakPoint, Phase
from ridgeline.facts.kv_layout import KvLayout
from ridgeline.runtime.batch import Batch
from ridgeline.runtime.models import load_model
from ridgeline.runtime.native import _native  # type: ignore[attr-defined]
from ridgeline.runtime.native.backend import NativeBackend
from ridgeline.runtime.weights import open_tensors

if TYPE_CHECKING:
    from ridgeline.engine.resolve import EngineConfig
    from ridgeline.engine.source import ModelSource
    from ridgeline.facts.model_spec import ModelSpec

Progress = Callable[[str, float | None], None]

PRODUCTS = ("qkv", "output", "gate_up", "down")
TIMED_S = 0.01
"""About how long one timed call takes; the best of several counts."""


def measure_ceilings(
    threads: Sequence[int],
    working_sets: Sequence[int],
    *,
    repeats: int = 7,
    tier: str = "",
    progress: Progress | None = None,
) -> Ceilings:
    """Read bandwidth for each number of threads and size in bytes, and the peak of every unit of the tier.

    The best of `repeats` counts: a ceiling is what the machine can do when nothing disturbs it. The
    rounds of sizes are interleaved, so that a slow phase of the machine does not hit one size alone.
    """
    bandwidth: list[BandwidthPoint] = []
    peaks: list[PeakPoint] = []
    for index, num_threads in enumerate(threads):
        pool = _native.ThreadPool(num_threads, tier)
        probe = _native.Probe(pool, max(working_sets), tier)
        units = [unit for unit in UNITS if probe.operations(unit)]
        best_read = dict.fromkeys(working_sets, 0.0)
        best_peak = dict.fromkeys(units, 0.0)
        for repeat in range(repeats):
            if progress is not None:
                progress("measuring", (index + repeat / repeats) / len(threads))
            for size in working_sets:
                best_read[size] = max(best_read[size], _read_rate(probe, size))
            for unit in units:
                best_peak[unit] = max(best_peak[unit], _peak_rate(probe, unit, num_threads))
        bandwidth += [BandwidthPoint(num_threads, size, rate) for size, rate in best_read.items()]
        peaks += [PeakPoint(num_threads, unit, rate) for unit, rate in best_peak.items()]
    return Ceilings(tier or _native.tier(), tuple(bandwidth), tuple(peaks))


def _read_rate(probe: Any, size: int) -> float:
    """Bytes a second, with or without prefetching, whichever is faster."""
    rounds = max(1, int(TIMED_S * 20e9 / size))
    return max(float(size * rounds / probe.read(size, rounds, ahead)) for ahead in (False, True))


def _peak_rate(probe: Any, unit: str, num_threads: int) -> float:
    operations = probe.operations(unit)
    rounds = max(1, int(2_000 * TIMED_S / probe.peak(unit, 2_000)))
    return float(operations * rounds * num_threads / probe.peak(unit, rounds))


class StepTimes:
    """A model on the native backend, timed operation by operation on batches of any shape."""

    def __init__(
        self,
        source: ModelSource,
        spec: ModelSpec,
        config: EngineConfig,
        *,
        num_threads: int,
        max_tokens: int,
        max_len: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Load the model; `max_tokens` in a step, `max_len` positions."""
        self._backend = NativeBackend(
            weights=config.weights,
            head_weights=config.head_weights,
            num_threads=num_threads,
            max_num_batched_tokens=max_tokens,
            max_model_len=max_len,
            tier=config.isa_tier,
        )
        self._spec = spec
        self._layout: KvLayout = config.kv_layout(spec)
        self._model = load_model(spec, open_tensors(source, spec), self._backend, progress)
        self._blocks_a_sequence = -(-max_len // self._layout.block_size) + 1

    def prepare(self, batch: int) -> None:
        """Make room in the cache for `batch` sequences."""
        groups = len(self._layout.groups)
        self._backend.allocate_kv(self._layout, batch * groups * self._blocks_a_sequence)

    def measure(self, phase: Phase, batch: int, context: int, repeats: int) -> dict[str, float]:
        """Median seconds of each operation (and "other") over `repeats` steps, summed over the layers."""
        step = self._batch(batch, 1, context) if phase == "decode" else self._batch(batch, context, 0)
        self._backend.run(self._model, step)
        tape = self._backend.tape_of(self._model)
        samples: list[dict[str, float]] = []
        for _ in range(repeats):
            tape.measure(True)
            self._backend.run(self._model, step)
            samples.append(by_operation(tape.nanoseconds(), self._spec.num_layers))
        tape.measure(False)
        names = sorted({name for sample in samples for name in sample})
        return {name: statistics.median(sample.get(name, 0.0) for sample in samples) for name in names}

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def _batch(self, num_rows: int, count: int, context: int) -> Batch:
        width, groups = self._blocks_a_sequence, len(self._layout.groups)
        tables = np.arange(num_rows * groups * width, dtype=np.int32).reshape(groups, num_rows, width)
        total = num_rows * count
        return Batch(
            token_ids=(np.arange(total, dtype=np.int32) % 1000) % self._spec.vocab_size,
            positions=np.tile(np.arange(context, context + count, dtype=np.int32), num_rows),
            row_starts=np.arange(0, total + 1, count, dtype=np.int32),
            context_before=np.full(num_rows, context, np.int32),
            block_tables=tuple(np.ascontiguousarray(table) for table in tables),
            logit_rows=np.arange(count - 1, total, count, dtype=np.int32),
        )


def by_operation(spent: Sequence[tuple[str, int]], num_layers: int) -> dict[str, float]:
    """The tape's (op, nanoseconds) as seconds of each operation of the model.

    Products come in the order of a layer: qkv, output, gate_up, down. Quantising rows counts with the
    product that it is for, writing K and V with attention; norms and the rest are "other".
    """
    products = sum(name == "linear" for name, _ in spent)
    if products != len(PRODUCTS) * num_layers:
        raise ValueError(f"{products} products in {num_layers} layers: not {len(PRODUCTS)} a layer")
    seconds: dict[str, float] = {}
    pending = done = 0
    for name, nanoseconds in spent:
        if name == "quantize":
            pending += nanoseconds
            continue
        if name == "linear":
            kind, nanoseconds, pending = PRODUCTS[done % len(PRODUCTS)], nanoseconds + pending, 0
            done += 1
        elif name == "logits":
            kind, nanoseconds, pending = "head", nanoseconds + pending, 0
        else:
            kind = "attention" if name in ("attention", "kv_write") else "other"
        seconds[kind] = seconds.get(kind, 0.0) + 1e-9 * nanoseconds
    return seconds
