"""P-tuning: pseudo tokens whose vectors an encoder computes, before, after or around the input. Liu et al., arXiv 2103.10385.

The encoder (a BiLSTM with an MLP, or an MLP alone) makes training stable and is dropped on saving. Before the input the
vectors are saved as PEFT's P_TUNING; elsewhere no stock library puts any: then as prompt.safetensors and prompt.json.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PromptEncoder, PromptEncoderConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from finemesh.hyperparameter import choice, integer, real
from finemesh.tuning.data.batches import Encoded
from finemesh.tuning.data.examples import Example
from finemesh.tuning.methods.base import PEFT_TASKS, Context, Point, PromptMethod, as_it_was, frozen_heads, sizes
from finemesh.tuning.methods.placement import install, placed, pseudo_tokens, uninstall

ENCODERS = {"lstm": "LSTM", "mlp": "MLP"}  # ours to PEFT's
VECTORS, SETTINGS = "prompt.safetensors", "prompt.json"


class PTuning(PromptMethod):
    name = "p_tuning"
    summary = "vectors from an encoder, before, after or around the input"
    source = "Liu et al., arXiv 2103.10385"
    space = {
        "length": integer(2, 200, 20, log=True),
        "placement": choice(("before", "after", "around"), "before"),
        "encoder": choice(("lstm", "mlp"), "lstm"),
        "hidden_size": integer(16, 1024, 128, log=True),
        "learning_rate": real(1e-6, 1.0, 1e-3, log=True),
    }
    reference = {"length": 9, "placement": "around", "encoder": "lstm", "hidden_size": 256, "learning_rate": 1e-3}
    peft_type = "P_TUNING"

    def configuration(self, model: PreTrainedModel, point: Point, context: Context) -> PeftConfig:
        return PromptEncoderConfig(
            task_type=PEFT_TASKS[context.task], num_virtual_tokens=int(point["length"]), **sizes(model),
            encoder_reparameterization_type=ENCODERS[point["encoder"]], encoder_hidden_size=int(point["hidden_size"]),
        )

    def prepare(self, model: PreTrainedModel, point: Point, context: Context) -> nn.Module:
        tuned: Any = super().prepare(model, point, context)
        name = tuned.active_adapter
        encoder = tuned.prompt_encoder[name] = _Encoder(tuned.peft_config[name]).to(model.device)
        if point["placement"] == "before":
            wrapper: nn.Module = tuned
            return wrapper
        install(model, encoder, int(point["length"]))  # into the model, whose head PEFT has made trainable where it has one
        return model

    def remove(self, tuned: nn.Module) -> PreTrainedModel:
        if isinstance(tuned, PeftModel):
            return super().remove(tuned)
        assert isinstance(tuned, PreTrainedModel)
        uninstall(tuned)
        return as_it_was(tuned, frozen_heads(tuned))

    def shape(self, tuned: nn.Module, examples: Sequence[Example], encoded: Sequence[Encoded], point: Point,
              context: Context, *, training: bool) -> Sequence[Encoded]:
        encoded = super().shape(tuned, examples, encoded, point, context, training=training)
        if point["placement"] == "before":
            return encoded
        length = int(point["length"])
        before = (length + 1) // 2 if point["placement"] == "around" else 0
        return [placed(row, before, length - before, context.tokenizer) for row in encoded]

    @torch.no_grad()
    def save(self, tuned: nn.Module, folder: Path, base_name: str) -> None:
        if isinstance(tuned, PeftModel):
            super().save(tuned, folder, base_name)
            return
        heads = {name: tuned.get_submodule(f"{name}.modules_to_save.default") for name in frozen_heads(tuned)}
        tensors = {f"{name}.{key}": tensor for name, head in heads.items() for key, tensor in head.state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": pseudo_tokens(tuned).vectors().contiguous(), **tensors}, folder / VECTORS)
        settings = {"method": self.name, "base_model": base_name, "heads": list(heads)}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def load(self, model: PreTrainedModel, folder: Path) -> nn.Module:
        if not (folder / SETTINGS).exists():
            return super().load(model, folder)
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(folder / VECTORS)
        vectors = tensors["vectors"]
        install(model, nn.Embedding.from_pretrained(vectors).to(model.device), len(vectors))
        for name in settings["heads"]:
            head = copy.deepcopy(model.get_submodule(name))
            head.load_state_dict({key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items()
                                  if key.startswith(f"{name}.")})
            model.set_submodule(name, head)
        return model.eval()


class _Encoder(PromptEncoder):
    """PEFT's, in float32 whatever else is not."""

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """(1, length) -> (1, length, width)"""
        with torch.autocast(indices.device.type, enabled=False):
            vectors: torch.Tensor = super().forward(indices)
        return vectors
