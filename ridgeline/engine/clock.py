"""Where time comes from. Everything that needs the time is handed a clock; nothing else reads one."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some fixed moment; never runs backwards."""

    def now(self) -> float: ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds, as `time.monotonic`."""
        return time.monotonic()
