"""A histogram that costs a fraction of a microsecond to feed, and its exposition."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

LATENCY_S = (
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04,
    0.05, 0.06, 0.075, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
"""Between tokens: from half a millisecond; holds every bound of vLLM's ITL and TPOT histograms."""
FIRST_TOKEN_S = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2,
    0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
    2560.0,
)  # fmt: skip
"""To the first token: from a millisecond; holds every bound of vLLM's."""
PHASE_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0,
    15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
"""Whole phases of a request; holds every bound of vLLM's, which start at 0.3 s."""
STEP_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)


def one_two_five(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20 ... up to `limit`: vLLM's bounds for token counts."""
    bounds: list[float] = []
    scale = 1
    while scale <= limit:
        bounds.extend(float(step * scale) for step in (1, 2, 5) if step * scale <= limit)
        scale *= 10
    return tuple(bounds)


class Histogram:
    """Counts per bucket (upper bounds inclusive) and their sum. One writer; any thread may read."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` that often."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """(upper bound, count at or below it) with +Inf last."""
        running = 0
        for bound, count in zip((*self.bounds, float("inf")), list(self.counts)):
            running += count
            yield str(floatToGoString(bound)), running  # type: ignore[no-untyped-call]

    def family(self, name: str, help_text: str, labels: dict[str, str]) -> HistogramMetricFamily:
        """Prometheus' view."""
        family = HistogramMetricFamily(name, help_text, labels=list(labels))
        family.add_metric(list(labels.values()), buckets=list(self.cumulative()), sum_value=self.total)
        return family
