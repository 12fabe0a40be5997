"""The three floors: an import goes down, from pipelines to stages to cluster. The methods' mathematics is torch."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FLOORS = ("cluster", "stages", "pipelines")
OURS = {*FLOORS, "benchmarks", "tests"}


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_down(floor):
    below = {*FLOORS[: FLOORS.index(floor) + 1]}
    wrong = [
        f"{file.relative_to(REPOSITORY)} imports {module}"
        for file in (REPOSITORY / floor).rglob("*.py")
        for module in imported(file)
        if module.partition(".")[0] in OURS - below
    ]
    assert wrong == []


def test_the_methods_know_neither_files_nor_ray_nor_mlflow():
    train = REPOSITORY / "stages" / "train"
    files = [train / "flow.py", *(file for file in (train / "methods").glob("*.py") if file.name != "settings.py")]
    known = {"__future__", "collections", "dataclasses", "hashlib", "math", "torch", "typing", "stages"}
    outside = {module for file in files for module in imported(file) if module.partition(".")[0] not in known}
    assert outside == set()
