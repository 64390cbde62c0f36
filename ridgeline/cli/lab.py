"""`ridgeline lab`: run a lab of the handbook, list them, or check an answer to an exercise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ridgeline.cli.flags import Json
from ridgeline.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from ridgeline.cli.labs import Lab, LabContext, LabResult


def lab(
    name: Annotated[str | None, typer.Argument(help="The lab; without it, list them all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Run all labs, one after another.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest run that shows it.")] = False,
    check: Annotated[
        str | None, typer.Option(metavar="ANSWER", help="Check an answer to an exercise.")
    ] = None,
    exercise: Annotated[int, typer.Option(min=1, help="Which exercise --check answers.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the results and the plot.")] = Path("ridgeline-labs"),
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Keep results and plot in --out.")] = True,
    publish: Annotated[
        bool, typer.Option("--publish", help="Write them beside the handbook's page.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Another model than the default.")] = None,
    json: Json = False,
) -> None:
    """Run a lab of the handbook, or list them.

    Exits with 1 when something that the lab expects does not hold.
    """
    from ridgeline.cli import labs

    if name is None and not every:
        _list(json)
        return
    if check is not None and name is not None:
        _check(labs.load_lab(name), exercise, check, json)
        return
    context = labs.LabContext(quick=quick, model=model)
    failed = []
    for chosen in labs.lab_files() if name is None else [name]:
        lab = labs.load_lab(chosen)
        folder = labs.lab_files()[chosen].parent if publish else out
        if not _run(chosen, lab, context, folder if plot else None, json):
            failed.append(chosen)
    if failed:
        raise typer.Exit(1)


def _list(json: bool) -> None:
    from ridgeline.cli import labs

    rows = [(path.parent.name, name, labs.load_lab(name).title) for name, path in labs.lab_files().items()]
    if json:
        print_json([dict(zip(("part", "name", "title"), row, strict=True)) for row in rows])
    else:
        print_table(("part", "lab", "question"), rows)


def _run(name: str, lab: Lab, context: LabContext, directory: Path | None, json: bool) -> bool:
    """Run, keep and print one lab; whether all its relations hold."""
    from ridgeline.cli import labs

    result = lab.run(context)
    files = labs.keep(directory, name, lab, result, context) if directory else []
    if json:
        print_json({**labs.record(name, lab, result, context), "files": [str(path) for path in files]})
    else:
        _print_result(name, lab, result)
        for path in files:
            print(f"wrote {path}")
    return all(relation.holds for relation in result.relations)


def _print_result(name: str, lab: Lab, result: LabResult) -> None:
    print_table(result.columns, result.rows, title=lab.title)
    for relation in result.relations:
        detail = f"  ({relation.detail})" if relation.detail else ""
        print(f"{'holds ' if relation.holds else 'FAILED'}  {relation.text}{detail}")
    print()
    for number, exercise in enumerate(lab.exercises, 1):
        print(f"Exercise {number}. {exercise.question}")
    if lab.exercises:
        print(f"Answer: ridgeline lab {name} --exercise 1 --check ANSWER")


def _check(lab: Lab, number: int, answer: str, json: bool) -> None:
    from ridgeline.cli import labs

    if number > len(lab.exercises):
        raise labs.LabError(f"exercise: this lab has {len(lab.exercises)}, got {number}")
    exercise = lab.exercises[number - 1]
    right = exercise.accepts(answer)
    if json:
        print_json({"exercise": number, "answer": answer, "right": right})
    else:
        print("right" if right else f"not that. {exercise.hint}")
    if not right:
        raise typer.Exit(1)
