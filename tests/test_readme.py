"""What the README promises: its config loads with the values it calls defaults, its commands and files exist."""

import re
from pathlib import Path

import typer.main

from finemesh.cli import app
from finemesh.config import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_config_is_all_defaults(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "finemesh.yaml").write_text(block)
    lines = [line for line in block.splitlines() if line.startswith(("model:", "data:", "  train:"))]
    (tmp_path / "least.yaml").write_text("\n".join(lines))
    config, least = load_config(tmp_path / "finemesh.yaml"), load_config(tmp_path / "least.yaml")
    assert config.model_copy(update={"out": ""}) == least.model_copy(update={"out": ""})
    options = re.sub(r"^( *)# ", r"\1", block, flags=re.MULTILINE).replace("methods: [lora, full]", "# one of two")
    (tmp_path / "all.yaml").write_text(options)
    assert load_config(tmp_path / "all.yaml").search.hours == 2


def test_every_command_is_listed() -> None:
    listed = set(re.findall(r"^\| `finemesh (\w+)", README, re.MULTILINE))
    assert listed == set(typer.main.get_group(app).commands)


def test_the_file_tree_is_whole() -> None:
    tree = README.partition("## The files")[2]
    named = set(re.findall(r"[\w]+\.(?:py|yaml|html|css|js)\b", tree))
    suffixes = (".py", ".yaml", ".html", ".css", ".js")
    package = {path.name for path in (ROOT / "finemesh").rglob("*.*") if path.suffix in suffixes}
    benchmarks = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    missing = package - named - {"__init__.py"}
    gone = named - package - benchmarks - {"finemesh.yaml", "report.html"}
    assert (missing, gone) == (set(), set())
