"""finemesh finds the best way to fine-tune a language model on your data, within your budget.

Importing it loads neither torch nor transformers: the names below come from finemesh.api when first used.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["InputError", "check", "search", "tune"]


def __getattr__(name: str) -> Any:
    if name == "InputError":
        from finemesh.errors import InputError

        return InputError
    if name in __all__:
        from finemesh import api

        return getattr(api, name)
    raise AttributeError(f"module 'finemesh' has no attribute {name!r}")
