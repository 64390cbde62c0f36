"""`ridgeline explain`: every setting with its reason, and where the memory goes; nothing is loaded."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ridgeline.cli.flags import EngineFlags, Json, Model, flattened
from ridgeline.cli.printing import load_progress, print_json, print_table

if TYPE_CHECKING:
    from ridgeline.cost.memory import MemoryLedger
    from ridgeline.engine.resolve import Decision

_DEFAULT_ENGINE = EngineFlags()


@flattened
def explain(model: Model = None, engine: EngineFlags = _DEFAULT_ENGINE, json: Json = False) -> None:
    """Say every setting with its reason, and the memory.

    Nothing is loaded: this is what `serve` with the same flags would do.
    """
    from ridgeline.engine.build import prepare

    with load_progress(quiet=json) as progress:
        prepared = prepare(engine.options(model), progress)
    if json:
        print_json(
            {
                "config": prepared.config,
                "decisions": prepared.decisions,
                "memory": prepared.ledger.as_dict(),
                "hardware": prepared.hardware,
                "model": {"path": str(prepared.source.path), **_without_layers(prepared.spec)},
            }
        )
        return
    print(f"{prepared.source.served_name}  {prepared.source.path}")
    print(f"{prepared.hardware.name}, {prepared.hardware.num_cores} cores\n")
    print_decisions(prepared.decisions)
    print_ledger(prepared.ledger)


def _without_layers(spec: Any) -> dict[str, Any]:
    facts = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    del facts["layers"]  # `info` counts them
    return facts


def print_decisions(decisions: tuple[Decision, ...]) -> None:
    """The configuration, one row a field; * marks what the user asked for."""
    rows = [(d.field + (" *" if d.asked else ""), _value(d.value), d.reason) for d in decisions]
    print_table(("setting", "value", "why"), rows, title="Configuration (* as asked)")


def print_ledger(ledger: MemoryLedger) -> None:
    """What the engine will take, entry by entry, with the sum."""
    from ridgeline.cost.memory import human_bytes

    rows = [
        (entry.name, human_bytes(entry.num_bytes), entry.num_bytes, entry.formula) for entry in ledger.entries
    ]
    available = f"of {human_bytes(ledger.available_bytes)} available" if ledger.available_bytes else ""
    rows.append(("total", human_bytes(ledger.total_bytes), ledger.total_bytes, available))
    print_table(("memory", "size", "bytes", "formula"), rows, title="Memory ledger")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
