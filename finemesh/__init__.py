"""finemesh finds the best way to fine-tune a language model on your data, within your budget.

Importing it loads neither torch nor transformers: the names below come from finemesh.api when first used. PEFT then knows
finemesh's adapters: `PeftModel.from_pretrained(model, folder)` loads any that finemesh saved.
"""

from typing import Any

from finemesh.plugin import tell_peft

__version__ = "0.1.0"
__all__ = ["InputError", "check", "search", "tune"]

tell_peft()


def __getattr__(name: str) -> Any:
    if name == "InputError":
        from finemesh.errors import InputError

        return InputError
    if name in __all__:
        from finemesh import api

        return getattr(api, name)
    raise AttributeError(f"module 'finemesh' has no attribute {name!r}")
