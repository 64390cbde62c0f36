"""Contract 1: `core` and `facts` import nothing but the standard library; no clock, no randomness."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "ridgeline"
FORBIDDEN_MODULES = {
    "asyncio", "datetime", "multiprocessing", "random", "secrets", "select", "socket", "subprocess",
    "threading", "time", "uuid",
}  # fmt: skip
FORBIDDEN_IN_CORE = FORBIDDEN_MODULES | {"io", "os", "pathlib", "shutil", "sys", "tempfile"}
FORBIDDEN_CALLS = {"open", "input", "print", "id", "hash", "eval", "exec", "__import__"}
FORBIDDEN_NAMES_OF_OS = {"environ", "environb", "getenv", "getpid", "urandom", "times"}
MAY_IMPORT = {"core": {"core", "facts"}, "facts": {"facts"}}

FILES = sorted((package, path) for package in ("core", "facts") for path in (ROOT / package).rglob("*.py"))


def imported_modules(tree: ast.AST) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a module comes from"
            modules.add(node.module or "")
    return modules


@pytest.mark.parametrize(("package", "path"), FILES, ids=lambda value: getattr(value, "name", value))
def test_imports(package: str, path: Path) -> None:
    forbidden = FORBIDDEN_IN_CORE if package == "core" else FORBIDDEN_MODULES
    for module in imported_modules(ast.parse(path.read_text())):
        top, _, rest = module.partition(".")
        if top == "ridgeline":
            assert rest.partition(".")[0] in MAY_IMPORT[package], f"{path.name} imports {module}"
        else:
            assert top in sys.stdlib_module_names, f"{path.name} imports {module}"
            assert top not in forbidden, f"{path.name} imports {module}"


@pytest.mark.parametrize(("package", "path"), FILES, ids=lambda value: getattr(value, "name", value))
def test_no_environment_and_no_io(package: str, path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in FORBIDDEN_NAMES_OF_OS, f"{path.name}:{node.lineno}: os.{node.attr}"
        if package == "core" and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{path.name}:{node.lineno} calls {node.func.id}"


def test_importing_them_loads_nothing_else() -> None:
    """In an interpreter without site-packages, where anything beyond the standard library fails."""
    modules = [
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        for _, path in FILES
    ]
    code = f"import sys; sys.path.insert(0, {str(ROOT.parent)!r})\nimport importlib\n"
    code += f"for name in {modules!r}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-S", "-E", "-c", code], check=True)
