"""Rows that are no file of the user's: data sets of the hub, and corpora that come with an installed package.

A new package is an entry of PACKAGES.
"""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

from finemesh.errors import NoSuchFile, nearest
from finemesh.tuning.data.rows import Row


def read_hub(source: str) -> list[Row]:
    import datasets

    name, _, rest = source.partition(":")
    configured = re.fullmatch(r"([^:\[]+):(.+)", rest)  # a slice such as train[:100] has a colon of its own
    config, split = configured.groups() if configured else (None, rest or "train")
    try:
        data = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub's errors share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoSuchFile(f"no such file here, and the hub gave no data set of that name: {reason}; name a file, "
                         "or a data set as NAME, NAME:SPLIT or NAME:CONFIG:SPLIT", file=source) from None
    names = {column: feature for column, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)}
    rows = []
    for number, fields in enumerate(data, start=1):
        named = {column: feature.int2str(fields[column]) for column, feature in names.items()
                 if isinstance(fields[column], int) and fields[column] >= 0}
        rows.append(Row({**fields, **named}, source, number, "row"))
    return rows


def read_package(source: str) -> list[Row]:
    name = source.removeprefix("package:").replace("_", "-").lower()
    if name not in PACKAGES:
        raise NoSuchFile(f"unknown corpus {source!r}.{nearest(name, PACKAGES)}")
    specification = importlib.util.find_spec(name.replace("-", "_"))  # finds it without importing it
    if specification is None or not specification.submodule_search_locations:
        raise NoSuchFile(f"{source} is not installed; run: pip install {name}")
    return PACKAGES[name](Path(next(iter(specification.submodule_search_locations))), source)


def _chatterbot(package: Path, source: str) -> list[Row]:
    """The first two turns of every English conversation, as question and answer; one entry of trivia.yml is no list."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    conversations = [turns for file in sorted((package / "data" / "english").glob("*.yml"))
                     for turns in yaml.load(file.read_text(encoding="utf-8"), loader)["conversations"]]
    pairs = [turns for turns in conversations if isinstance(turns, list) and len(turns) > 1]
    return [Row({"question": str(question).strip(), "answer": str(answer).strip()}, source, number, "row")
            for number, (question, answer, *_) in enumerate(pairs, start=1)]


PACKAGES: dict[str, Callable[[Path, str], list[Row]]] = {"chatterbot-corpus": _chatterbot}
