"""The package imports downwards only: a module may use a lower layer, never a higher one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "mixer_dist"
LAYERS = [
    {"__init__", "errors"},
    {"yaml_tree", "sections"},
    {"config"},
    {"distributed", "liveness"},
    {"storage", "logs", "progress", "stop_requests"},
    {"run_dir"},
    {"metrics", "goodput"},
    {"models", "data"},
    {"checkpoint"},
    {"train"},
    {"eval"},
    {"operations"},
    {"studies"},
    {"cli", "__main__"},
]
NOT_LISTED = 99  # a new module needs a place in LAYERS
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and first package component of each import of our own, wherever it stands."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "mixer_dist":
            names = [f"mixer_dist.{alias.name}" for alias in node.names if alias.name in LEVEL]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *["mixer_dist.relative"] * bool(node.level)]
        for name in names:
            if name.startswith("mixer_dist."):
                yield node.lineno, name.split(".")[1]


def test_imports_point_down():
    bad = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).parts
        here = parts[0].removesuffix(".py")
        for line, there in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if there != here and LEVEL.get(there, NOT_LISTED) > LEVEL[here]:
                bad.append(f"{path.name}:{line}: {here} imports {there}")
    assert not bad, "\n".join(bad)


def test_only_distributed_reads_the_environment():
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\b(environb?|getenv)\b", path.read_text(encoding="utf-8"))
    }
    assert readers == {"distributed/placement.py"}
