"""Run the oracle on every pair of features and write docs/feature_matrix.md.

python -m tests.contracts.write_feature_matrix
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from ridgeline.engine.source import resolve_source
from tests.contracts.oracle import (
    BACKENDS,
    FEATURES,
    IMPOSSIBLE,
    Subject,
    kv_dtype_of,
    load_subject,
    run_case,
)
from tests.references import tiny

PAGE = Path(__file__).parent.parent.parent / "docs" / "feature_matrix.md"
HEAD = """# Which features work together

Written by `python -m tests.contracts.write_feature_matrix`; not edited by hand. For each pair of features the
engine ran four to six requests with both switched on, and both were seen to happen. **yes**: every token
equals that of a naive generation, which recomputes the whole sequence for each token, with no cache, no
batch and a sampler of its own. The diagonal is the feature alone. `tests/contracts/test_oracle.py` asserts
the same, for every architecture, and for the default model in each precision of the native backend.
"""


def main() -> int:
    """Write the page; 1 when something does not work."""
    text, failures = HEAD, []
    with tempfile.TemporaryDirectory() as folder:
        for backend in BACKENDS:
            cells = run_all(Path(folder), backend)
            failures += [f"{backend}: {' + '.join(pair)}" for pair, word in cells.items() if word == "no"]
            text += f"\n## Backend: {backend}\n\n{table(cells)}"
    notes = [f"{FEATURES[a]} with {FEATURES[b]}: {why}." for (a, b), why in IMPOSSIBLE.items()]
    PAGE.write_text(text + "\n## Why not\n\n" + "\n".join(f"- {note}" for note in notes) + "\n")
    print("\n".join(failures) or f"wrote {PAGE.name}: everything works together")
    return 1 if failures else 0


def run_all(folder: Path, backend: str) -> dict[tuple[str, str], str]:
    """yes, no or "-" (impossible) for each pair, and for each feature alone as (feature, feature)."""
    names, cells = list(FEATURES), {}
    subjects: dict[tuple[str, str], Subject] = {}
    for i, first in enumerate(names):
        for second in names[i:]:
            features = tuple(dict.fromkeys((first, second)))
            key = ("gemma3" if "windowed" in features else "llama", kv_dtype_of(features))
            if features in IMPOSSIBLE:
                cells[first, second] = "-"
                continue
            if key not in subjects:
                tiny.write_checkpoint(folder / key[0], key[0])
                subjects[key] = load_subject(resolve_source(str(folder / key[0])), backend, kv_dtype=key[1])
            cells[first, second] = outcome(subjects[key], features)
    for subject in subjects.values():
        subject.executor.close()
    return cells


def outcome(subject: Subject, features: tuple[str, ...]) -> str:
    try:
        run_case(subject, features)
    except AssertionError:
        return "no"
    return "yes"


def table(cells: dict[tuple[str, str], str]) -> str:
    """A Markdown table, symmetric in rows and columns."""
    names = list(FEATURES)
    lines = ["| | " + " | ".join(FEATURES[name] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in names:
        words = [cells.get((row, column)) or cells[column, row] for column in names]
        lines.append(f"| **{FEATURES[row]}** | " + " | ".join(words) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
