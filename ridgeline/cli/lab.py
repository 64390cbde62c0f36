"""`ridgeline lab`: run a lab of the handbook, list them, or check an answer to an exercise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ridgeline.cli.flags import Json
from ridgeline.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from ridgeline.cli.labs import Lab, LabContext


def lab(
    name: Annotated[str | None, typer.Argument(help="The lab; without it, list them all.")] = None,
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

    if name is None:
        _list(json)
    elif check is not None:
        _check(labs.load_lab(name), exercise, check, json)
    else:
        chosen = labs.load_lab(name)
        directory = labs.lab_files()[name].parent if publish else out
        _run(name, chosen, labs.LabContext(quick=quick, model=model), directory if plot else None, json)


def _list(json: bool) -> None:
    from ridgeline.cli import labs

    rows = [(path.parent.name, name, labs.load_lab(name).title) for name, path in labs.lab_files().items()]
    if json:
        print_json([dict(zip(("part", "name", "title"), row, strict=True)) for row in rows])
    else:
        print_table(("part", "lab", "question"), rows)


def _run(name: str, lab: Lab, context: LabContext, directory: Path | None, json: bool) -> None:
    from ridgeline.cli import labs

    result = lab.run(context)
    files = labs.keep(directory, name, lab, result, context) if directory else []
    if json:
        print_json({**labs.record(name, lab, result, context), "files": [str(path) for path in files]})
    else:
        print_table(result.columns, result.rows, title=lab.title)
        for relation in result.relations:
            detail = f"  ({relation.detail})" if relation.detail else ""
            print(f"{'holds ' if relation.holds else 'FAILED'}  {relation.text}{detail}")
        for number, exercise in enumerate(lab.exercises, 1):
            print(f"\nExercise {number}. {exercise.question}")
        if lab.exercises:
            print(f"  ridgeline lab {name} --exercise 1 --check ANSWER")
        for path in files:
            print(f"wrote {path}")
    if not all(relation.holds for relation in result.relations):
        raise typer.Exit(1)


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
