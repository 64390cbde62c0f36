"""docs/tour.md names files and functions: each must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text()
TOKENS = re.findall(r"`([\w/.]+)`", TOUR)
FILE = re.compile(r"^[\w/]+\.(?:py|cpp|hpp)$")
WORDS = {"data", "stream", "stop", "health"}


def source_of(file: str) -> Path:
    return ROOT / file if file.startswith("csrc/") else ROOT / "ridgeline" / file


ALL_SOURCE = "\n".join(path.read_text() for path in (ROOT / "ridgeline").rglob("*.py"))


@pytest.mark.parametrize("file", sorted({token for token in TOKENS if FILE.match(token)}))
def test_files_exist(file: str) -> None:
    assert source_of(file).is_file()


@pytest.mark.parametrize(
    "name", sorted({t for t in TOKENS if re.match(r"^[A-Z]\w+(\.\w+)?$|^[a-z]+_\w+$", t) and t not in WORDS})
)
def test_names_exist(name: str) -> None:
    owner, _, member = name.partition(".")
    assert re.search(rf"\b(?:class|def) {owner}\b|\b{owner}\(", ALL_SOURCE), f"{owner} is defined nowhere"
    if member:
        assert re.search(rf"\bdef {member}\b", ALL_SOURCE), f"{member} is defined nowhere"
