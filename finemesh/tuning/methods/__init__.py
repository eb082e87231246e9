"""The tuning methods. A new one is a file and a line here; the contract tests pick it up by themselves."""

from typing import Any

from finemesh.tuning.methods.base import Context, Method, Point
from finemesh.tuning.methods.bottleneck import Bottleneck
from finemesh.tuning.methods.full import Full
from finemesh.tuning.methods.head import Head
from finemesh.tuning.methods.in_context import InContext
from finemesh.tuning.methods.instruction_prompt import InstructionPrompt
from finemesh.tuning.methods.lora import Lora
from finemesh.tuning.methods.p_tuning import PTuning
from finemesh.tuning.methods.p_tuning_v2 import PTuningV2
from finemesh.tuning.methods.prefix import Prefix
from finemesh.tuning.methods.prompt import Prompt
from finemesh.tuning.methods.sift import Sift

METHODS: dict[str, Method] = {
    "full": Full(),
    "head": Head(),
    "bottleneck": Bottleneck(),
    "in_context": InContext(),
    "prefix": Prefix(),
    "prompt": Prompt(),
    "p_tuning": PTuning(),
    "p_tuning_v2": PTuningV2(),
    "lora": Lora(),
    "sift": Sift(),
    "instruction_prompt": InstructionPrompt(),
}

__all__ = ["METHODS", "Context", "Method", "Point", "describe"]


def describe(method: Method) -> dict[str, Any]:
    """One entry of `finemesh methods --json`."""
    return {
        "name": method.name, "summary": method.summary, "source": method.source, "trains": method.trains,
        "mergeable": method.mergeable, "peft_type": method.peft_type, "plug_in": method.plug_in,
        "gguf": method.gguf, "tasks": list(method.tasks),
        "hyperparameters": {
            name: {**_range(h.distribution), "default": h.default, "reference": method.reference.get(name), "when": h.when}
            for name, h in method.space.items()
        },
    }


def _range(distribution: Any) -> dict[str, Any]:
    if hasattr(distribution, "choices"):
        return {"choices": list(distribution.choices)}
    return {"low": distribution.low, "high": distribution.high, "log": distribution.log}
