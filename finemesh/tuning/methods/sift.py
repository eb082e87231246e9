"""SIFT: the gradient picks a small share of the weights' entries, and only those are tuned. Song et al., arXiv 2312.11875.

The entries are chosen once, by the gradient summed over some calibration batches, whose rows then count like those of the
first update's own batch: their work is not lost. The increment is trained in float32, weight decay acts on it, and it is
folded into the weights after every update (kernels/sparse.py). As many entries as LoRA of a rank has parameters make a stock
SHIRA adapter; any other budget is kept in sift.safetensors.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import ShiraConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finemesh.hyperparameter import choice, integer, real
from finemesh.tuning.data.batches import Encoded
from finemesh.tuning.heads import new_layers
from finemesh.tuning.kernels.sparse import SparseLinear
from finemesh.tuning.memory import release_freed_heap
from finemesh.tuning.methods.base import PEFT_TASKS, Context, Method, Point, new_parameters
from finemesh.tuning.methods.calibration import calibration_rows, summed_gradients
from finemesh.tuning.methods.selection import highest, highest_overall, score
from finemesh.tuning.methods.targets import linear_layers

GRADIENT_SCORES = ("gradient", "gradient_weight")
Tensors = dict[str, torch.Tensor]


class Sift(Method):
    name = "sift"
    summary = "the few weights with the largest gradients"
    source = "Song et al., arXiv 2312.11875"
    space = {
        "budget": choice(("rank", "density"), "rank"),
        "rank": integer(1, 128, 8, log=True, when=("budget", ("rank",))),
        "density": real(0.001, 0.2, 0.05, log=True, when=("budget", ("density",))),
        "scope": choice(("matrix", "model"), "matrix"),
        "score": choice(("gradient", "gradient_weight", "magnitude", "random"), "gradient"),
        "calibration_batches": integer(1, 32, 2, log=True, when=("score", GRADIENT_SCORES)),
        "layers": choice(("all", "attention"), "all"),
        "learning_rate": real(1e-5, 1e-1, 2e-4, log=True),
        "weight_decay": real(0.0, 0.3, 0.0),
    }
    # The paper's density on Alpaca is 5 %, which is that of rank 16 in matrices 600 wide
    reference = {"budget": "rank", "rank": 16, "density": 0.05, "scope": "matrix", "score": "gradient",
                 "calibration_batches": 2, "layers": "all", "learning_rate": 2e-4, "weight_decay": 0.0}
    mergeable = True
    peft_type = "SHIRA"
    gguf = True
    starts_at_base = True

    def unfit(self, model: PreTrainedModel, task: str) -> str | None:
        if not linear_layers(model, "all"):
            return f"sift finds no linear layers in {type(model).__name__}; full fits any model"
        return None

    def refuses(self, model: PreTrainedModel, point: Point, context: Context) -> str | None:
        layers = linear_layers(model, point["layers"])
        if not layers:
            return f"the {point['layers']} layers of {type(model).__name__} are not known; use layers: all"
        if point["budget"] != "rank":
            density = point["density"]
            return None if density <= 1 else f"density {density:g} is more than all entries of a matrix; give at most 1"
        for name, layer in layers.items():
            rows, columns = layer.weight.shape
            if _entries(point, layer) > rows * columns:
                return (f"rank {point['rank']} asks for {_entries(point, layer)} entries of {name}, which has only "
                        f"{rows * columns}: the rank may be at most {rows * columns // (rows + columns)}")
        return None

    def trainable(self, model: PreTrainedModel, point: Point, context: Context) -> int:
        entries = sum(_entries(point, layer) for layer in linear_layers(model, point["layers"]).values())
        return entries + new_parameters(model, context)

    def prepare(self, model: PreTrainedModel, point: Point, context: Context) -> nn.Module:
        layers = linear_layers(model, point["layers"])
        weights = {name: model.get_parameter(f"{name}.weight") for name in layers}
        gradients: Mapping[str, torch.Tensor] = {}
        rows: list[Encoded] = []
        if point["score"] in GRADIENT_SCORES:
            rows = calibration_rows(context, int(point["calibration_batches"]))
            gradients = summed_gradients(model, weights, rows, context)
        chosen = _chosen(layers, gradients, point)
        for name, layer in layers.items():
            sparse = SparseLinear(layer, chosen[name])
            if name in gradients:
                sparse.first = gradients[name].view(-1).index_select(0, sparse.entries.flat)
            model.set_submodule(name, sparse)
        del gradients
        release_freed_heap()  # so that the summed gradients are not still resident beside the first activations
        if context.task != "instruct":
            _train_head(model)
        tuned: Any = model
        tuned.calibration = rows  # that the first update has not seen yet
        made: nn.Module = tuned
        return made

    def calibration_tokens(self, tuned: Any) -> int:
        return sum(len(row.input_ids) for row in tuned.calibration)

    def join(self, tuned: Any, rows: int) -> None:
        """The first gradient becomes the mean over its rows and the calibration's."""
        calibrated = len(tuned.calibration)
        if not calibrated:
            return
        for layer in _sparse_layers(tuned).values():
            if layer.first is not None and layer.delta.grad is not None:
                layer.delta.grad.mul_(rows).add_(layer.first, alpha=calibrated).div_(rows + calibrated)
        _forget_calibration(tuned)

    def remove(self, tuned: Any) -> PreTrainedModel:
        for name, sparse in _sparse_layers(tuned).items():
            sparse.unfold()
            tuned.set_submodule(name, sparse.base_layer)
        for name, frozen in tuned.__dict__.pop("frozen_heads", {}).items():
            tuned.set_submodule(name, frozen)
        del tuned.calibration
        model: PreTrainedModel = tuned
        return model.requires_grad_(False)

    def optimizer(self, tuned: nn.Module, point: Point) -> torch.optim.Optimizer:
        """AdamW; decay acts on the increments and the head's matrix."""
        sparse = list(_sparse_layers(tuned).values())
        deltas = [layer.delta for layer in sparse]
        others = [p for p in tuned.parameters() if p.requires_grad and not any(p is delta for delta in deltas)]
        decay = float(point["weight_decay"])
        groups: list[dict[str, Any]] = [{"params": [*deltas, *(p for p in others if p.ndim > 1)], "weight_decay": decay},
                                        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=float(point["learning_rate"]), fused=True)

        def fold(*_: Any) -> None:
            for layer in sparse:
                layer.fold()

        optimizer.register_step_post_hook(fold)
        return optimizer

    def state(self, tuned: nn.Module) -> dict[str, torch.Tensor]:
        entries = {f"{name}.entries": layer.entries.flat for name, layer in _sparse_layers(tuned).items()}
        return super().state(tuned) | entries

    def load_state(self, tuned: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        _forget_calibration(tuned)  # an update has seen it
        for name, layer in _sparse_layers(tuned).items():
            layer.unfold()
            layer.take(state[f"{name}.entries"])
        with torch.no_grad():
            for name, tensor in super().state(tuned).items():
                tensor.copy_(state[name])
        for layer in _sparse_layers(tuned).values():
            layer.fold()

    def save(self, tuned: nn.Module, folder: Path, base_name: str) -> None:
        assert isinstance(tuned, PreTrainedModel)
        folder.mkdir(parents=True, exist_ok=True)
        layers = _sparse_layers(tuned)
        head = {f"{layer}.{name}": tensor.contiguous() for layer in getattr(tuned, "frozen_heads", ())
                for name, tensor in tuned.get_submodule(layer).state_dict().items()}
        rank = _shira_rank(layers)
        if rank is None:
            tensors = {f"{name}.entries": layer.entries.flat for name, layer in layers.items()}
            tensors |= {f"{name}.delta": layer.delta.detach() for name, layer in layers.items()}
            save_file(tensors | head, folder / "sift.safetensors")
            about = {"base_model_name_or_path": base_name, "head": sorted(head),
                     "entries": "places in the stored weight, row by row"}
            (folder / "sift.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            return
        _save_shira(layers, head, rank, tuned, folder, base_name)

    def load(self, model: PreTrainedModel, folder: Path) -> nn.Module:
        """The increments are merged into the model's weights: no forward pass pays for them."""
        entries, deltas, head = _read_shira(folder) if (folder / "adapter_config.json").exists() else _read_own(folder)
        with torch.no_grad():
            for name, places in entries.items():
                weight = model.get_parameter(f"{name}.weight")
                flat = places.long() if places.ndim == 1 else places[0].long() * weight.shape[1] + places[1].long()
                weight.view(-1).index_add_(0, flat.to(weight.device), deltas[name].to(weight))
            for key, tensor in head.items():
                model.get_parameter(key).copy_(tensor)
        return model.eval()


def _entries(point: Point, layer: nn.Module) -> int:
    """How many of a layer's entries are trained."""
    rows, columns = layer.weight.shape  # type: ignore[misc]
    if point["budget"] == "rank":
        return int(point["rank"]) * (rows + columns)
    return max(1, round(float(point["density"]) * rows * columns))


def _chosen(layers: Mapping[str, nn.Module], gradients: Mapping[str, torch.Tensor], point: Point) -> dict[str, torch.Tensor]:
    def scores(name: str) -> torch.Tensor:
        return score(point["score"], layers[name].weight, gradients.get(name))  # type: ignore[arg-type]

    if point["scope"] == "model":
        return highest_overall({name: scores(name) for name in layers},
                               sum(_entries(point, layer) for layer in layers.values()))
    return {name: highest(scores(name), _entries(point, layer)) for name, layer in layers.items()}


def _sparse_layers(tuned: nn.Module) -> dict[str, SparseLinear]:
    return {name: module for name, module in tuned.named_modules() if isinstance(module, SparseLinear)}


def _train_head(model: Any) -> None:
    """A classifier's or regressor's new layers are trained too, as copies."""
    frozen = {name: model.get_submodule(name) for name in new_layers(model)}
    model.frozen_heads = frozen  # a dict: not submodules
    for name, layer in frozen.items():
        model.set_submodule(name, copy.deepcopy(layer).float().requires_grad_(True))


def _forget_calibration(tuned: Any) -> None:
    tuned.calibration = []
    for layer in _sparse_layers(tuned).values():
        layer.first = None


def _shira_rank(layers: Mapping[str, SparseLinear]) -> int | None:
    """The rank of the stock SHIRA adapter that these entries make; None where they make none."""
    ranks = set()
    for layer in layers.values():
        rank, rest = divmod(len(layer.entries.flat), sum(layer.entries.shape))
        if rest or isinstance(layer.base_layer, Conv1D):
            return None
        ranks.add(rank)
    return ranks.pop() if len(ranks) == 1 else None


def _save_shira(layers: Mapping[str, SparseLinear], head: Mapping[str, torch.Tensor], rank: int, model: PreTrainedModel,
                folder: Path, base_name: str) -> None:
    """What PEFT's own save_pretrained writes for the same entries."""
    tensors = {f"base_model.model.{name}": tensor for name, tensor in head.items()}
    for name, layer in layers.items():
        rows = torch.div(layer.entries.flat, layer.entries.shape[1], rounding_mode="floor")
        places = torch.stack([rows, layer.entries.flat - rows * layer.entries.shape[1]])
        tensors[f"base_model.model.{name}.shira_indices"] = places.int()
        tensors[f"base_model.model.{name}.shira_weight"] = layer.delta.detach()
    task = "instruct" if not head else "classify"
    configuration = ShiraConfig(r=rank, task_type=PEFT_TASKS[task], target_modules=sorted(layers), inference_mode=True,
                                base_model_name_or_path=base_name, modules_to_save=new_layers(model) if head else None)
    configuration.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _read_own(folder: Path) -> tuple[Tensors, Tensors, Tensors]:
    """By layer the places of its entries, row by row, and their increments; the trained head by parameter."""
    tensors = load_file(folder / "sift.safetensors")
    head = json.loads((folder / "sift.json").read_text(encoding="utf-8"))["head"]
    return _ending(tensors, ".entries"), _ending(tensors, ".delta"), {name: tensors[name] for name in head}


def _read_shira(folder: Path) -> tuple[Tensors, Tensors, Tensors]:
    """The same of a stock adapter, whose places are (2, entries): row, column. PEFT's merging stops at heads of two layers."""
    tensors = {name.removeprefix("base_model.model."): tensor
               for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
    entries, deltas = _ending(tensors, ".shira_indices"), _ending(tensors, ".shira_weight")
    return entries, deltas, {name: tensor for name, tensor in tensors.items() if ".shira_" not in name}


def _ending(tensors: Tensors, end: str) -> Tensors:
    return {name.removesuffix(end): tensor for name, tensor in tensors.items() if name.endswith(end)}
