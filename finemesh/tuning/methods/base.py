"""What a tuning method is: its space, its paper's reference settings, and how it makes a model tunable, saves and loads it.

One file a method and one line in the METHODS table; the training loop, the search and the report know no method by name.
The defaults below suit a method that trains some parameters by AdamW; the others override what differs:
`shape` (the input changes), `trains = False` (nothing is trained), `state` (more than the trainable parameters is kept),
`optimizer` (updates of its own), `join` (a gradient that is known before the first update).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finemesh.hyperparameter import Hyperparameters
from finemesh.tuning.data.batches import Encoded, scored_tokens
from finemesh.tuning.data.examples import Example
from finemesh.tuning.features import Features
from finemesh.tuning.heads import HEADS, new_layers
from finemesh.tuning.models import TaskName

Point = Mapping[str, Any]
PEFT_TASKS: dict[str, TaskType] = {
    "instruct": TaskType.CAUSAL_LM, "classify": TaskType.SEQ_CLS, "regress": TaskType.SEQ_CLS,
}


@dataclass(frozen=True)
class Context:
    """What a method may look at: never the validation or test rows, but for how long they are.

    `refuses` and `trainable` may be shown a part of the training rows, and `shape` none.
    """

    task: TaskName
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Example]
    encoded: Sequence[Encoded]  # the training rows, in the order of `train`
    max_length: int
    context_length: int  # tokens that the model can take
    seed: int
    longest: int = 0  # tokens of the longest row of all splits; for `refuses`
    features: Features = field(default_factory=Features)  # what the frozen model has computed of batches
    answers: Callable[[], list[int]] | None = None  # gives `answer_tokens` where `encoded` is a part, or they are known

    @cached_property
    def answer_tokens(self) -> list[int]:
        """Those that training answers hold, ascending."""
        return self.answers() if self.answers else scored_tokens(self.encoded)


class Method:
    """A way of tuning. Stateless: what a run needs is in the tuned module and the point."""

    name: ClassVar[str]
    summary: ClassVar[str]  # a phrase for `finemesh methods`
    source: ClassVar[str]  # the paper
    space: ClassVar[Hyperparameters]
    reference: ClassVar[Mapping[str, Any]]  # the settings that the paper used
    tasks: ClassVar[tuple[TaskName, ...]] = ("instruct", "classify", "regress")
    trains: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = None  # None: saved as a transformers folder or in a form of its own
    plug_in: ClassVar[bool] = False  # PEFT knows that type after `import finemesh`
    gguf: ClassVar[bool] = False
    starts_at_base: ClassVar[bool] = False  # prepared and not yet trained, it computes what the base model computes
    half_precision_base: ClassVar[bool] = True  # the frozen weights may be kept in bfloat16

    def unfit(self, model: PreTrainedModel, task: TaskName) -> str | None:
        """Why this method cannot tune this model for this task; None when it can."""
        return None if task in self.tasks else f"{self.name} does not do task: {task}"

    def refuses(self, model: PreTrainedModel, point: Point, context: Context) -> str | None:
        """Why these settings cannot be used with this model and these rows, such as a prefix longer than the model's context.

        Only the model's shapes are looked at: its weights may be missing. None when they can be used.
        """
        return None

    def trainable(self, model: PreTrainedModel, point: Point, context: Context) -> int:
        """How many parameters `prepare` makes trainable, told from the model's shapes: its weights are missing. The model is
        as it was afterwards."""
        tuned = self.prepare(model, point, context)
        count = trained(tuned)
        self.remove(tuned)
        return count

    def prepare(self, model: PreTrainedModel, point: Point, context: Context) -> nn.Module:
        """The model with just the right parameters trainable; `remove` undoes it. Draws from torch's global generator."""
        raise NotImplementedError

    def remove(self, tuned: nn.Module) -> PreTrainedModel:
        """The base model again, bit-equal to what `prepare` was given."""
        raise NotImplementedError

    def save(self, tuned: nn.Module, folder: Path, base_name: str) -> None:
        """Write what another process loads; `base_name` is the base model as anyone can load it."""
        raise NotImplementedError

    def load(self, model: PreTrainedModel, folder: Path) -> nn.Module:
        """The tuned model from the base model and what `save` wrote, for inference."""
        raise NotImplementedError

    def shape(self, tuned: nn.Module, examples: Sequence[Example], encoded: Sequence[Encoded], point: Point,
              context: Context, *, training: bool) -> Sequence[Encoded]:
        """The rows as this method shows them to the model, questions that are to be answered too; the scored tokens stay.

        What is needed of the training rows comes with `tuned`: where a saved adapter is used, the context has none.
        """
        return encoded

    def calibration_tokens(self, tuned: nn.Module) -> int:
        """Tokens whose gradient `prepare` has computed. They count as trained."""
        return 0

    def join(self, tuned: nn.Module, rows: int) -> None:
        """Before an update's gradient, the mean over so many rows, is clipped: what else is known of the gradient joins it."""

    def counts(self, tuned: nn.Module) -> Mapping[str, float]:
        """What a run should tell beside its losses: goes into the outcome's metrics."""
        return {}

    def state(self, tuned: nn.Module) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold beside the optimizer: the trainable parameters, by name."""
        return {name: parameter.data for name, parameter in tuned.named_parameters() if parameter.requires_grad}

    def load_state(self, tuned: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.state(tuned).items():
                tensor.copy_(state[name])

    def optimizer(self, tuned: nn.Module, point: Point) -> torch.optim.Optimizer:
        """AdamW at the point's learning rate, without weight decay on vectors. Source: Loshchilov & Hutter 2019."""
        parameters = [p for p in tuned.parameters() if p.requires_grad]
        decay = float(point.get("weight_decay", 0.0))
        groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
                  {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=float(point["learning_rate"]), fused=True)


def trained(tuned: nn.Module) -> int:
    return sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)


def new_parameters(model: nn.Module, context: Context) -> int:
    """Those of a classifier's or regressor's new layers, which every method trains."""
    names = [] if context.task == "instruct" else new_layers(model)
    return sum(parameter.numel() for name in names for parameter in model.get_submodule(name).parameters())


def save_whole(tuned: nn.Module, folder: Path) -> None:
    """A transformers folder in float32, so that everyone loads just the weights that were trained."""
    assert isinstance(tuned, PreTrainedModel)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor
             for name, tensor in tuned.state_dict().items()}
    tuned.save_pretrained(folder, state_dict=state)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


class PeftMethod(Method):
    """A method whose module and file format are PEFT's: a subclass gives the configuration."""

    def configuration(self, model: PreTrainedModel, point: Point, context: Context) -> PeftConfig:
        raise NotImplementedError

    def prepare(self, model: PreTrainedModel, point: Point, context: Context) -> nn.Module:
        configuration: Any = self.configuration(model, point, context)
        if context.task != "instruct":  # PEFT knows the head by its name, and no other layer that is new
            configuration.modules_to_save = [name for name in new_layers(model) if not name.endswith(HEADS)] or None
        tuned: nn.Module = get_peft_model(model, configuration)
        for parameter in tuned.parameters():
            if parameter.requires_grad:  # PEFT copies the head of a half precision model as it is
                parameter.data = parameter.data.float()
        return tuned

    def save(self, tuned: nn.Module, folder: Path, base_name: str) -> None:
        assert isinstance(tuned, PeftModel)
        for configuration in tuned.peft_config.values():
            configuration.base_model_name_or_path = base_name
        # save_embedding_layers would ask the hub for the base model's vocabulary; no method here trains embeddings
        tuned.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; best/ gets a real one

    def load(self, model: PreTrainedModel, folder: Path) -> nn.Module:
        return PeftModel.from_pretrained(model, str(folder)).eval()


class AdapterMethod(PeftMethod):
    """PEFT methods that put modules into the base model."""

    def remove(self, tuned: nn.Module) -> PreTrainedModel:
        assert isinstance(tuned, PeftModel)
        heads = frozen_heads(tuned.get_base_model())
        return as_it_was(tuned.unload(), heads)


class PromptMethod(PeftMethod):
    """PEFT methods that put `length` vectors before the input (prompt learning) and leave the base model as it is."""

    def unfit(self, model: PreTrainedModel, task: TaskName) -> str | None:
        if model.config.is_encoder_decoder:
            return (f"{type(model).__name__} reads its input by an encoder and a decoder, and vectors come before one of them "
                    "only; lora takes any linear layers")
        if model.config.model_type == "longformer":
            return (f"{type(model).__name__} finds by its tokens where to look, and vectors are none; "
                    "lora takes any linear layers")
        if not _reads_words(model):
            return (f"{type(model).__name__} has no plain table of words' vectors, and others come before those; "
                    "full fits any model")
        return super().unfit(model, task)

    def refuses(self, model: PreTrainedModel, point: Point, context: Context) -> str | None:
        length, room = int(point["length"]), context.context_length
        longest = context.longest
        if length + longest <= room:
            return None
        mend = f"a length of at most {room - longest}" if longest < room else f"a data.max_length below {room - length}"
        return (f"a length of {length} is longer than the context allows: with the longest row ({longest} tokens) it takes "
                f"{length + longest} positions, and the model has {room}; give {mend}")

    def trainable(self, model: PreTrainedModel, point: Point, context: Context) -> int:
        """Of what PEFT makes: what the vectors start from, read off the weights, does not change how many they are."""
        with torch.device("meta"):
            tuned = PeftMethod.prepare(self, model, point, context)
        count = trained(tuned)
        PromptMethod.remove(self, tuned)
        return count

    def shape(self, tuned: nn.Module, examples: Sequence[Example], encoded: Sequence[Encoded], point: Point,
              context: Context, *, training: bool) -> Sequence[Encoded]:
        return [cut(row, context.context_length - int(point["length"]), context.task) for row in encoded]

    def remove(self, tuned: nn.Module) -> PreTrainedModel:
        assert isinstance(tuned, PeftModel)
        model: Any = tuned.get_base_model()
        return as_it_was(model, frozen_heads(model))


def _reads_words(model: PreTrainedModel) -> bool:
    """By an embedding that gives a vector a token: Canine hashes characters, I-BERT's gives two tensors, Perceiver has none."""
    try:
        return isinstance(model.get_input_embeddings(), nn.Embedding)
    except NotImplementedError:  # how transformers says that it knows no table
        return False


def cut(row: Encoded, room: int, task: TaskName) -> Encoded:
    """At most `room` tokens: a question loses its beginning, a text its end, but for the token that closes it."""
    places = range(len(row.input_ids))
    if len(places) <= room:
        return row
    kept = places[-room:] if task == "instruct" else [*places[:room - 1], places[-1]]
    types = row.token_type_ids
    return replace(row, input_ids=[row.input_ids[i] for i in kept], scored=[row.scored[i] for i in kept],
                   token_type_ids=None if types is None else [types[i] for i in kept])


def sizes(model: PreTrainedModel) -> dict[str, Any]:
    """What a configuration of PEFT's vectors before the input must know, whatever the model's own calls it.

    They are as wide as the embedding, which may be narrower than the layers; models without attention have no heads.
    """
    words: Any = model.get_input_embeddings()
    config: Any = model.config.get_text_config()
    return {"token_dim": words.weight.shape[1], "num_layers": config.num_hidden_layers,
            "num_attention_heads": getattr(config, "num_attention_heads", 1)}


def frozen_heads(model: nn.Module) -> dict[str, nn.Module]:
    """By name, what PEFT trains a copy of in place of: the head of a classifier or regressor."""
    return {name: module.original_module for name, module in model.named_modules()
            if isinstance(module, ModulesToSaveWrapper)}


def as_it_was(model: PreTrainedModel, heads: Mapping[str, nn.Module]) -> PreTrainedModel:
    for name, head in heads.items():  # unloading leaves the trained copies
        model.set_submodule(name, head)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(False)
