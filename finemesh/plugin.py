"""Tells PEFT of finemesh's own adapters, so that `import finemesh` is all that loading one needs.

Importing finemesh must not take the seconds that PEFT and torch take. So PEFT is told when somebody imports it: a finder
that finds it as the others do, and has finemesh.tuning.bottleneck imported after it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ADAPTERS = "finemesh.tuning.bottleneck"


class _WithPeft(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "peft":
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_tell(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(ADAPTERS)

            spec.loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec


def tell_peft() -> None:
    """Now where PEFT is imported already, else as soon as it is."""
    if "peft" in sys.modules:
        importlib.import_module(ADAPTERS)
    else:
        sys.meta_path.insert(0, _WithPeft())
