"""Bottleneck adapters as a method of PEFT: h + scale * W_up f(W_down h).

houlsby   on what the attention and the feed-forward block give, before the residual connection; arXiv 1902.00751
pfeiffer  on what the feed-forward block gives; arXiv 2005.00247
parallel  beside the feed-forward block, h being what the block is given; arXiv 2110.04366

PEFT knows its methods by an enum that has no entry for them, but its tables take any key: `finemesh/plugin.py` has this
module imported with PEFT, and after `import finemesh` everything of PEFT but merging works.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers.activations import ACT2FN

from finemesh.tuning.architecture import Architecture, anywhere, architecture

BOTTLENECK = "BOTTLENECK"
VARIANTS = ("houlsby", "pfeiffer", "parallel")


@dataclass
class BottleneckConfig(PeftConfig):
    """What adapter_config.json says."""

    variant: str = field(default="houlsby", metadata={"help": f"one of {', '.join(VARIANTS)}"})
    reduction: float = field(default=16, metadata={"help": "the model's width, divided by the adapter's"})
    nonlinearity: str = field(default="relu", metadata={"help": "an activation of transformers.activations"})
    scale: float = field(default=1.0, metadata={"help": "what the adapter's output is multiplied with"})
    target_modules: list[str] | str | None = field(default=None, metadata={
        "help": "the modules whose output (of parallel: whose input) is adapted; None: found by the variant"})
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules that are trained whole, as a new head"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}, not one of {', '.join(VARIANTS)}")

    def width(self, model_width: int) -> int:
        return max(1, int(model_width / self.reduction))


def places(blocks: Architecture, variant: str) -> str:
    """A pattern of the names of the modules that get an adapter."""
    return anywhere(*{"houlsby": (blocks.attention_output, blocks.mlp_output), "pfeiffer": (blocks.mlp_output,),
                      "parallel": (blocks.mlp_block,)}[variant])


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module of the base model with the adapters at its place, by their names."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.inner: dict[str, tuple[nn.Module, float]] = {}  # nonlinearity and scale
        self._disable_adapters = False
        self.merged_adapters = []

    def update_layer(self, adapter: str, config: BottleneckConfig, width: int) -> None:
        """A new adapter, which at first adds nothing: W_up is zero. Initialised as in He et al., arXiv 2110.04366."""
        down, up = nn.Linear(width, config.width(width)), nn.Linear(config.width(width), width)
        nn.init.kaiming_uniform_(down.weight, a=5 ** 0.5)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        device = next(self.get_base_layer().parameters()).device
        if down.weight.device.type != "meta":
            down, up = down.to(device), up.to(device)
        self.bottleneck_down[adapter], self.bottleneck_up[adapter] = down, up
        self.inner[adapter] = (ACT2FN[config.nonlinearity], config.scale)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def increments(self, h: torch.Tensor, adapter: str) -> torch.Tensor:
        """scale * W_up f(W_down h), in h's type."""
        down, up = self.bottleneck_down[adapter], self.bottleneck_up[adapter]
        nonlinearity, scale = self.inner[adapter]
        x = h if torch.is_autocast_enabled(h.device.type) else h.to(down.weight.dtype)  # type: ignore[arg-type]
        y: torch.Tensor = up(nonlinearity(down(x))) * scale
        return y.to(h.dtype)

    def working(self) -> list[str]:
        """The adapters that are switched on."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.bottleneck_down]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NotImplementedError("a bottleneck adapter is not linear and cannot be merged into the base model")


class SerialBottleneck(BottleneckLayer):
    """After a module."""

    def forward(self, *arguments: Any, **named: Any) -> torch.Tensor:
        y: torch.Tensor = self.base_layer(*arguments, **named)
        for adapter in self.working():
            y = y + self.increments(y, adapter)
        return y


class ParallelBottleneck(BottleneckLayer):
    """Beside a feed-forward block; or around BERT's end of one, whose second argument is the block's input as residual."""

    def beside(self, h: torch.Tensor) -> torch.Tensor | None:
        """What is added to the block's output for its input h."""
        parts = [self.increments(h, adapter) for adapter in self.working()]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] if parts else None

    def forward(self, x: torch.Tensor, *residual: torch.Tensor) -> torch.Tensor:
        h = residual[0] if residual else x
        added = self.beside(h)
        if added is None:
            y: torch.Tensor = self.base_layer(x, *residual)
        elif residual:
            y = self.base_layer(x, h + added)
        else:
            y = self.base_layer(x) + added
        return y


class BottleneckModel(BaseTuner):
    """A transformers model with bottleneck adapters."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _check_new_adapter_config(self, config: Any) -> None:
        super()._check_new_adapter_config(config)
        configs: Any = self.peft_config.values()
        if len({each.variant == "parallel" for each in configs}) > 1:
            raise ValueError("adapters beside and after the blocks cannot be on one model: load one model for each")

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        config = peft_config
        if config.target_modules is None:
            blocks = architecture(self.model)
            if blocks is None:
                raise ValueError(f"the attention and feed-forward blocks of {type(self.model).__name__} are not known: "
                                 "give target_modules")
            config.target_modules = places(blocks, config.variant)
        return config

    def _create_and_replace(self, peft_config: Any, adapter_name: str, target: nn.Module, target_name: str,
                            parent: nn.Module, current_key: str, parameter_name: str | None = None) -> None:
        config, layer = peft_config, target
        if not isinstance(layer, BottleneckLayer):
            layer = (ParallelBottleneck if config.variant == "parallel" else SerialBottleneck)(target)
            setattr(parent, target_name, layer)
        layer.update_layer(adapter_name, config, self.model.config.get_text_config().hidden_size)
        if adapter_name not in self.active_adapters:  # a further adapter is not trained at once
            layer.set_requires_grad(adapter_name, False)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # PEFT's own expects that a module has a weight


_tables: Any = mapping
_tables.PEFT_TYPE_TO_CONFIG_MAPPING[BOTTLENECK] = BottleneckConfig
_tables.PEFT_TYPE_TO_TUNER_MAPPING[BOTTLENECK] = BottleneckModel
_tables.PEFT_TYPE_TO_PREFIX_MAPPING[BOTTLENECK] = BottleneckModel.prefix
