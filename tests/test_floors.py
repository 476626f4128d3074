"""Imports point down the floors of the house, and files and functions stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ditf_probe"
FLOORS = {
    "lazy": -1, "errors": -1, "configs_folder": -1, "files": 0, "precision": 0,
    "probes": 1, "geometry": 1, "conditions": 1, "progress": 1, "printing": 1, "devices": 1,
    "data": 2, "backbones": 2, "metrics": 2, "matching": 2, "pictures": 2,
    "features": 3, "losses": 3, "protocols": 3,
    "tasks": 4, "selection": 4,
    "comparison": 5, "callbacks": 5, "inference": 5,
    "cli": 6, "sweeping": 7, "experiments": 8, "commands": 9, "__main__": 10, "__init__": 10,
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """First-level modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write the full name"
            if node.module == "ditf_probe":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("ditf_probe."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ditf_probe.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = name_of(path)
    assert here in FLOORS, f"{here} has no floor: give it one in {__file__}"
    for there in imported(path):
        assert there == here or FLOORS[there] < FLOORS[here], f"{here} (floor {FLOORS[here]}) imports {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert path.stem not in ("utils", "helpers", "common", "misc")
    assert text.count("\n") <= 280, "about 250 lines or less: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 45, f"{node.name}: {lines} lines, about 40 or less"
