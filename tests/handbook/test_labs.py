"""Every lab runs with --quick, its relations hold, its plot is drawn and its exercises are checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ridgeline.cli.labs import LabContext, LabError, keep, lab_files, load_lab, read_number

LABS = sorted(lab_files())


@pytest.mark.parametrize("name", LABS)
def test_lab_holds(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lab = load_lab(name)
    context = LabContext(quick=True)
    result = lab.run(context)
    assert result.relations, "a lab expects something"
    assert all(len(row) == len(result.columns) for row in result.rows)
    failed = [f"{relation.text}: {relation.detail}" for relation in result.relations if not relation.holds]
    assert not failed
    results, plot = keep(tmp_path, name, lab, result, context)
    kept = json.loads(results.read_text())
    assert kept["machine"]["cpu"] and kept["date"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", LABS)
def test_exercises_accept_the_right_and_refuse_a_wrong_answer(name: str) -> None:
    lab = load_lab(name)
    assert lab.exercises
    for exercise in lab.exercises:
        assert exercise.accepts(exercise.right)
        assert not exercise.accepts(exercise.wrong)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("131072", 131_072),
        ("131,072", 131_072),
        ("128 KiB", 131_072),
        ("16.06 GB", 16_060_000_000),
        ("25%", 0.25),
        ("7.5B", 7_500_000_000),
        ("1e3", 1_000),
        ("4.5 ms", 4.5),
        ("-3", -3),
    ],
)
def test_answers_are_read_with_units(text: str, number: float) -> None:
    assert read_number(text) == pytest.approx(number)


def test_an_answer_that_is_no_number_is_a_clear_error() -> None:
    with pytest.raises(LabError, match="answer: 'many' is not a number"):
        read_number("many")


def test_an_unknown_lab_lists_those_that_exist() -> None:
    with pytest.raises(LabError, match=LABS[0]):
        load_lab("nothing")
