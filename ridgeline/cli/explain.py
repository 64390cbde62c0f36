"""`ridgeline explain`: every setting with its reason, and where the memory goes; nothing is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ridgeline.cli.flags import EngineFlags, Json, Model, flattened
from ridgeline.cli.printing import download_progress, print_json, print_table

if TYPE_CHECKING:
    from ridgeline.cost.memory import MemoryLedger
    from ridgeline.engine.options import EngineOptions
    from ridgeline.engine.resolve import Decision, EngineConfig
    from ridgeline.engine.source import ModelSource
    from ridgeline.facts.hardware import HardwareSpec
    from ridgeline.facts.model_spec import ModelSpec

_DEFAULT_ENGINE = EngineFlags()


@flattened
def explain(model: Model = None, engine: EngineFlags = _DEFAULT_ENGINE, json: Json = False) -> None:
    """Say every setting with its reason, and the memory.

    Nothing is loaded: this is what `serve` with the same flags would do.
    """
    with download_progress(quiet=json) as progress:
        resolved = resolve_all(engine.options(model), progress)
    if json:
        print_json(
            {
                "config": resolved.config,
                "decisions": resolved.decisions,
                "memory": resolved.ledger.as_dict(),
                "hardware": resolved.hardware,
                "model": {"path": str(resolved.source.path), **_without_layers(resolved.spec)},
            }
        )
        return
    print(f"{resolved.source.served_name}  {resolved.source.path}")
    print(f"{resolved.hardware.name}, {resolved.hardware.num_cores} cores\n")
    print_decisions(resolved.decisions)
    print_ledger(resolved.ledger)


@dataclass(frozen=True)
class Resolved:
    """All that is known of an engine before anything is loaded."""

    source: ModelSource
    spec: ModelSpec
    hardware: HardwareSpec
    config: EngineConfig
    decisions: tuple[Decision, ...]
    ledger: MemoryLedger


def resolve_all(options: EngineOptions, progress: Callable[[int, int], None] | None) -> Resolved:
    """Find the model (downloading it if need be), probe the machine and settle every option."""
    from ridgeline.engine.hardware_probe import probe_hardware
    from ridgeline.engine.resolve import ledger_of, resolve
    from ridgeline.engine.source import read_spec, resolve_source

    source = resolve_source(options.model, progress=progress, offline=options.offline)
    spec = read_spec(source)
    hardware = probe_hardware()
    config, decisions = resolve(options, spec, hardware, served_name=source.served_name)
    return Resolved(source, spec, hardware, config, decisions, ledger_of(spec, config, hardware))


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
