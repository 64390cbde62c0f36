"""The ledger's arithmetic and its words."""

from __future__ import annotations

import json

import pytest

from ridgeline.cost.memory import LedgerEntry, MemoryLedger, human_bytes, memory_ledger
from ridgeline.facts.formulas import weight_bytes
from ridgeline.facts.gguf import read_gguf_header
from ridgeline.facts.gguf_spec import model_spec_from_gguf
from ridgeline.facts.kv_layout import kv_layout


@pytest.fixture
def ledger(default_model_path) -> MemoryLedger:
    spec = model_spec_from_gguf(read_gguf_header(default_model_path), "m")
    return memory_ledger(
        spec,
        kv_layout(spec, 16, 2),
        num_blocks=1_000,
        weights="int8",
        head_weights="int8",
        max_num_seqs=8,
        max_num_batched_tokens=512,
        max_model_len=2_048,
        available_bytes=1 << 30,
    )


def test_entries_add_up(ledger: MemoryLedger, default_model_path) -> None:
    spec = model_spec_from_gguf(read_gguf_header(default_model_path), "m")
    assert ledger.entry("kv_cache").num_bytes == 1_000 * 16 * 23_040
    rounding = ledger.entry("weights").num_bytes - weight_bytes(spec, "int8")
    assert 0 <= rounding < 0.1 * weight_bytes(spec, "int8")
    assert ledger.entry("rope_tables").num_bytes == 2_048 * 64 * 4
    assert ledger.entry("logits").num_bytes == 8 * 49_152 * 12
    assert ledger.total_bytes == sum(entry.num_bytes for entry in ledger.entries)
    assert ledger.largest.name == "kv_cache"
    assert ledger.fits


def test_text_has_a_line_and_a_formula_for_each_entry(ledger: MemoryLedger) -> None:
    lines = ledger.as_text().splitlines()
    assert len(lines) == len(ledger.entries) + 1
    for line, entry in zip(lines, ledger.entries, strict=False):
        assert line.startswith(entry.name) and human_bytes(entry.num_bytes) in line and entry.formula in line
    assert "1000 blocks x 16 tokens x 30 layers x 2 (K, V) x 3 KV heads x 64 x 2 B" in lines[1]
    assert "of 1.0 GiB available" in lines[-1]


def test_an_int8_cache_has_scales(default_model_path) -> None:
    spec = model_spec_from_gguf(read_gguf_header(default_model_path), "m")
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 512, "max_model_len": 2_048}
    layout = kv_layout(spec, 16, 1, scale_bytes=4)
    entry = memory_ledger(spec, layout, num_blocks=1_000, weights="int8", head_weights="int8", **sizes).entry(
        "kv_cache"
    )
    assert entry.num_bytes == 1_000 * 16 * 30 * 2 * 3 * 68
    assert entry.formula.endswith("3 KV heads x (64 x 1 B + 4 B scale)")


def test_json_round_trip(ledger: MemoryLedger) -> None:
    data = json.loads(json.dumps(ledger.as_dict()))
    assert data["total_bytes"] == ledger.total_bytes
    assert [entry["name"] for entry in data["entries"]] == [entry.name for entry in ledger.entries]


def test_unknown_entry_and_no_limit() -> None:
    ledger = MemoryLedger((LedgerEntry("a", 5, "5"),))
    assert ledger.fits
    with pytest.raises(KeyError):
        ledger.entry("b")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (98_362_432, "93.8 MiB"), (1 << 30, "1.0 GiB"), (1 << 42, "4.0 TiB")],
)
def test_human_bytes(num_bytes: int, text: str) -> None:
    assert human_bytes(num_bytes) == text
