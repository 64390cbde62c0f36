"""Time that passes only when somebody says so."""

from __future__ import annotations


class VirtualClock:
    """A `Clock` that starts at `start_s` and moves only forward."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s

    def now(self) -> float:
        """Seconds."""
        return self._now

    def advance_to(self, time_s: float) -> None:
        """Move to a moment; one that has passed already changes nothing."""
        self._now = max(self._now, time_s)

    def advance(self, seconds: float) -> None:
        """Let a span of time pass.

        Raises:
            ValueError: the span is negative.
        """
        if seconds < 0:
            raise ValueError(f"time cannot run backwards, by {seconds} s")
        self._now += seconds
