"""Every chapter has its seven sections, names code that exists, and stands beside its lab."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HANDBOOK = ROOT / "docs" / "handbook"
CHAPTERS = sorted(path for path in HANDBOOK.glob("*/*.md"))
SECTIONS = [
    "The question",
    "The idea",
    "In the code",
    "Lab",
    "When it does not pay",
    "In vLLM, SGLang and TensorRT-LLM",
    "Exercises and further reading",
]
REFERENCE = re.compile(r"^- `([\w/.]+\.(?:py|cpp|hpp))`: `([\w.]+)`", re.MULTILINE)


def names_in(path: Path) -> set[str]:
    """Functions, classes, methods (as Class.method) and module-level names of a Python file."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            members = (item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{member.name}" for member in members}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def section(text: str, title: str) -> str:
    """The text under one `##` heading."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_there_are_chapters() -> None:
    assert CHAPTERS


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_sections(chapter: Path) -> None:
    text = chapter.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert re.match(r"# \S", text)
    assert "```mermaid" in text or "![" in text, "a chapter has a picture"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_references_to_the_code_exist(chapter: Path) -> None:
    references = REFERENCE.findall(section(chapter.read_text(), "In the code"))
    assert 1 <= len(references) <= 4, "one to three places, written as - `file.py`: `Name`"
    for file, name in references:
        path = next((p for p in (ROOT / "ridgeline" / file, ROOT / file) if p.is_file()), None)
        assert path is not None, f"{file} does not exist"
        found = name in names_in(path) if path.suffix == ".py" else name in path.read_text()
        assert found, f"{file} has no {name}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_has_its_lab(chapter: Path) -> None:
    assert chapter.with_name(f"{chapter.stem}_lab.py").is_file()
    assert f"ridgeline lab {chapter.stem}\n" in section(chapter.read_text(), "Lab")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_is_read_in_ten_minutes(chapter: Path) -> None:
    assert len(chapter.read_text().split()) < 2_300


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader):
        """YAML with MkDocs' python tags read as nothing."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: None)
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]
    listed = re.findall(r"[\w/]+\.md", str(nav))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages - set(listed) == set()
    assert set(listed) - pages == {"reference/cli.md"}, "only the generated page has no file"


def test_the_site_builds_with_strict_links(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the docs extra is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stderr
    assert "ridgeline serve" in (tmp_path / "site" / "reference" / "cli" / "index.html").read_text()
