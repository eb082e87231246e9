"""The allowed arrows between the modules: two halves that know nothing of each other, and no cycle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "finemesh"
MAY_SEE_BOTH_HALVES = {"finemesh.api", "finemesh.preparation", "finemesh.config"}
NAMELESS = {"utils", "helpers", "common", "misc", "other", "base_utils"}


def modules() -> dict[str, Path]:
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of finemesh that a file imports, at its top or within a function, but not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {inner for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
                 for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in known else node.module for name in inner}


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imported(path, known)) - {"finemesh", name} for name, path in known.items()}


def half(name: str) -> str:
    return name.split(".")[1] if name.count(".") else ""


def test_every_import_inside_finemesh_is_absolute_and_exists() -> None:
    known = modules()
    for path in known.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                assert node.module in known or not str(node.module).startswith("finemesh"), f"{path}: {node.module}"


@pytest.mark.parametrize(("this", "never"), [
    ("search", {"tuning", "results", "config", "api", "preparation", "cli"}),
    ("tuning", {"search", "results", "config", "api", "preparation", "cli", "run"}),
    ("results", {"search", "tuning", "config", "api", "preparation", "cli"}),
])
def test_a_half_knows_nothing_of_the_others(arrows: dict[str, set[str]], this: str, never: set[str]) -> None:
    assert any(half(name) == this for name in arrows)
    wrong = [f"{name} -> {target}" for name, targets in arrows.items() if half(name) == this
             for target in targets if half(target) in never]
    assert wrong == []


def test_only_a_few_modules_see_both_halves(arrows: dict[str, set[str]]) -> None:
    both = {name for name, targets in arrows.items() if {"search", "tuning"} <= {half(target) for target in targets}}
    assert both <= MAY_SEE_BOTH_HALVES


@pytest.mark.parametrize("name", ["errors", "hyperparameter", "trial", "disk"])
def test_the_seams_import_nothing_else_of_finemesh(arrows: dict[str, set[str]], name: str) -> None:
    assert arrows[f"finemesh.{name}"] <= {"finemesh.errors", "finemesh.disk"}


def test_there_is_no_cycle(arrows: dict[str, set[str]]) -> None:
    order = list(TopologicalSorter(arrows).static_order())
    assert set(order) >= set(arrows)


def test_every_module_has_a_name_that_says_something() -> None:
    assert [name for name in modules() if name.rsplit(".", 1)[-1] in NAMELESS] == []


@pytest.mark.parametrize("module", [
    "finemesh", "finemesh.cli", "finemesh.config", "finemesh.init", "finemesh.results.live", "finemesh.search.study",
    "finemesh.search.executors", "finemesh.search.samplers.nomad_child",
])
def test_what_must_start_fast_loads_neither_torch_nor_ray(module: str) -> None:
    script = f"import sys, {module}\nprint({{'torch', 'transformers', 'ray'}} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
