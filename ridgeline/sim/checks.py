"""The books: what must hold of any scheduler after any step. Each check returns its complaints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ridgeline.core.event import Admitted, Arrived, Event, Finished, Preempted, StepCompleted, TokensGenerated
from ridgeline.core.plan import NO_BLOCK
from ridgeline.core.scheduler import Scheduler


def block_complaints(scheduler: Scheduler) -> list[str]:
    """Contract 2: free + cached + held = all, and held is exactly what the sequences' tables refer to."""
    stats = scheduler.stats()
    complaints = []
    total = stats.num_free_blocks + stats.num_cached_blocks + stats.num_held_blocks
    if total != stats.num_blocks:
        complaints.append(f"free + cached + held = {total}, of {stats.num_blocks} blocks")
    expected: Counter[int] = Counter()
    for tables in scheduler.block_tables():
        expected.update(block for table in tables for block in table if block != NO_BLOCK)
    actual = scheduler.block_references()
    for block in range(stats.num_blocks):
        if expected[block] != actual[block]:
            complaints.append(f"block {block}: {actual[block]} references, {expected[block]} in tables")
    return complaints


def event_complaints(events: Iterable[Event], all_finished: bool = True) -> list[str]:
    """Contract 6: per request: Arrived, then Admitted before anything computed, and one Finished, last."""
    complaints = []
    stage: dict[str, str] = {}
    allowed = {
        Admitted: ("arrived", "preempted"),
        Preempted: ("admitted",),
        TokensGenerated: ("admitted", "preempted"),
        Finished: ("arrived", "admitted", "preempted"),
    }
    becomes = {Admitted: "admitted", Preempted: "preempted", Finished: "finished"}
    for event in events:
        if isinstance(event, StepCompleted):
            continue
        before = stage.get(event.request_id)
        if isinstance(event, Arrived):
            if before not in (None, "finished"):
                complaints.append(f"{event} after {before}")
            stage[event.request_id] = "arrived"
            continue
        if before not in allowed.get(type(event), ("admitted", "preempted")):
            complaints.append(f"{event} after {before}")
        stage[event.request_id] = becomes.get(type(event), before or "")
    if all_finished:
        complaints += [f"{name!r} never finished" for name, last in stage.items() if last != "finished"]
    return complaints
