"""`ridgeline roofline`: its document, its tables, its plot and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ridgeline.cli.main import EXIT_MISTAKE, run

pytest.importorskip("ridgeline.runtime.native._native")


def test_document_and_plot(capsys, tmp_path: Path) -> None:
    plot = tmp_path / "roof.png"
    arguments = ["--quick", "--json", "--measure", "--batch", "2", "--context", "64", "--plot", str(plot)]
    assert run(["roofline", *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    document = json.loads(said.out)
    assert len(document["operations"]) == 12
    for each in document["operations"]:
        assert each["floor_s"] == max(each["memory_s"], each["compute_s"]) > 0
        assert each["measured_s"] > 0
        assert each["bound"] in ("memory", "compute")
    assert {point["unit"] for point in document["peaks"]} >= {"float32"}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_tables(capsys) -> None:
    assert run(["roofline", "--quick", "--context", "64"]) == 0
    text = capsys.readouterr().out
    for word in (
        "Read bandwidth",
        "float32",
        "Decode: 1 sequence, context 64",
        "gate_up",
        "Prefill: 64 tokens",
    ):
        assert word in text


def test_mistakes(capsys) -> None:
    assert run(["roofline", "--batch", "0"]) == EXIT_MISTAKE
    assert "batch: must be between 1 and 1024, got 0" in capsys.readouterr().err
