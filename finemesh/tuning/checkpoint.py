"""A run's state in one safetensors file, from which it continues exactly: weights, optimizer, random generator, curve."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from finemesh.disk import whole


@dataclass(frozen=True)
class Checkpoint:
    step: int  # updates done
    progress: Mapping[str, Any]  # JSON: horizon, warmup, curve, tokens, seconds, memory
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[int, Mapping[str, torch.Tensor]]
    generator: torch.Tensor  # torch's CPU generator
    cuda_generator: torch.Tensor | None = None

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        tensors = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        for index, state in self.optimizer.items():
            tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items()}
        tensors["generator"] = self.generator
        if self.cuda_generator is not None:
            tensors["cuda_generator"] = self.cuda_generator
        with whole(path) as temporary:
            save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary,
                      metadata={"step": str(self.step), "progress": json.dumps(dict(self.progress))})

    @staticmethod
    def load(path: Path) -> "Checkpoint | None":
        """None where there is none, or one that was cut off in copying: the run begins anew."""
        try:
            return Checkpoint._load(path)
        except (FileNotFoundError, SafetensorError):
            return None

    @staticmethod
    def _load(path: Path) -> "Checkpoint":
        weights: dict[str, torch.Tensor] = {}
        optimizer: dict[int, dict[str, torch.Tensor]] = {}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                kind, _, rest = key.partition("/")
                if kind == "weights":
                    weights[rest] = file.get_tensor(key)
                elif kind == "optimizer":
                    index, _, name = rest.partition("/")
                    optimizer.setdefault(int(index), {})[name] = file.get_tensor(key)
            cuda = file.get_tensor("cuda_generator") if "cuda_generator" in file.keys() else None  # noqa: SIM118
            return Checkpoint(int(metadata["step"]), json.loads(metadata["progress"]), weights, optimizer,
                              file.get_tensor("generator"), cuda)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, torch.Tensor]]:
    return {index: dict(state) for index, state in optimizer.state_dict()["state"].items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
    """The groups (rates, decay) stay those of `optimizer`; only what it remembers of each parameter is replaced."""
    optimizer.load_state_dict({"state": {i: dict(s) for i, s in state.items()},
                               "param_groups": optimizer.state_dict()["param_groups"]})
