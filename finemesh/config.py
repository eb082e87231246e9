"""What a user may write in finemesh.yaml, and the errors it gets.

A path in a config that does not exist from the current directory is looked for beside the config file; a model or a
data set that is neither is a hub name. Overrides (the options of a command) win over the file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_serializer, field_validator

from finemesh.complaints import Source, invalid
from finemesh.data_config import DataConfig, Section
from finemesh.errors import FieldError, InputError, nearest
from finemesh.objectives import LOSS
from finemesh.search_config import SearchConfig
from finemesh.yaml_lines import read_yaml, write_yaml

Task = Literal["instruct", "classify", "regress"]


class RayConfig(Section):
    """What a trial takes of the nodes of a Ray cluster."""

    address: str | None = None  # host:port of its head; left out: RAY_ADDRESS, else the cluster on this machine
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    memory_mb: float | None = Field(default=None, gt=0)


class Config(Section):
    model: str = Field(min_length=1)
    task: Task | None = None  # None: guessed from the data
    data: DataConfig
    methods: list[str] | dict[str, dict[str, Any]] | None = None  # None: every method that fits the task
    search: SearchConfig = SearchConfig()
    workers: int = Field(default=1, ge=1)
    executor: Literal["local", "ray"] = "local"
    ray: RayConfig = RayConfig()
    storage: str = "sqlite"
    out: str = Field(min_length=1)
    _source: Source | None = PrivateAttr(default=None)

    @field_validator("methods", mode="before")
    @classmethod
    def _names_or_spaces(cls, methods: Any) -> Any:
        if methods is None:
            return None
        if isinstance(methods, dict):
            methods = {name: {} if space is None else space for name, space in methods.items()}
        if not _well_formed(methods):
            raise ValueError("must be a list such as [lora, full], or a mapping such as {lora: {rank: [4, 64]}}, "
                             f"not {methods!r}")
        if not methods:
            raise ValueError("no method is named: name at least one, or leave the field out")
        if len(set(methods)) < len(methods):
            raise ValueError("a method is named twice: keep one of them")
        return methods

    @field_validator("storage")
    @classmethod
    def _sqlite_or_url(cls, storage: str) -> str:
        if storage != "sqlite" and "://" not in storage:
            raise ValueError("must be sqlite, or the URL of a database such as postgresql://user@host/name, "
                             f"not {storage!r}")
        return storage

    @field_serializer("storage")
    def _without_password(self, storage: str) -> str:
        """What is written of a config (the run folder's, say) is for others to read, too."""
        if storage == "sqlite":
            return storage
        from finemesh.search.database import without_password

        return without_password(storage)

    @property
    def spaces(self) -> dict[str, dict[str, Any]] | None:
        """By method, what is fixed or narrowed of its hyperparameters; None: every method that fits the task."""
        return {name: {} for name in self.methods} if isinstance(self.methods, list) else self.methods

    def with_option(self, field: str, value: Any, option: str) -> "Config":
        """With a field as a command's option gives it."""
        changed = self.model_copy(update={field: value})
        if self._source:
            changed._source = replace(self._source, options={**self._source.options, field: option})
        return changed

    @contextmanager
    def placed(self) -> Iterator[None]:
        """A FieldError within is said with the file and the line where the field stands, or with the option."""
        try:
            yield
        except FieldError as error:
            raise (self._source.error(error.field, error.message) if self._source else error) from None

    def to_yaml(self) -> str:
        """A config file that loads as this very Config (but for a password in `storage`)."""
        return write_yaml(self.model_dump(exclude_none=True))


def _well_formed(methods: Any) -> bool:
    if isinstance(methods, list):
        return all(isinstance(name, str) for name in methods)
    return isinstance(methods, dict) and all(isinstance(space, dict) for space in methods.values()) and all(
        isinstance(name, str) for names in (methods, *methods.values()) for name in names)


def load_config(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Config:
    """`overrides`: a command's options by dotted name, as {"search.trials": 12}; None leaves the file's value."""
    path = Path(path)
    _refuse_other_files(path)
    document = read_yaml(path)
    options = {name: value for name, value in (overrides or {}).items() if value is not None}
    source = Source(path, document, {name: f"--{name.rpartition('.')[2]}" for name in options})
    if document.values is None:
        raise InputError("is empty, but model and data.train are needed: finemesh init DATA writes a config", file=path)
    if not isinstance(document.values, dict):
        raise InputError("must hold fields such as `model: ...`", file=path, line=1)
    try:
        config = Config.model_validate(_merged(document.values, options, out=f"runs/{path.stem}"))
    except ValidationError as error:
        raise invalid(error, Config, source) from None
    if config.data.tasks and config.task not in (None, "instruct"):
        raise source.error(("task",), f"data.tasks are instructions with answers to write, which are for instruct, not "
                           f"{config.task}: leave the field out, or give data.train in place of data.tasks")
    if config.executor != "ray" and config.ray != RayConfig():
        raise source.error(("ray",), "is for `executor: ray`: add that field, or leave this section out")
    config._source = source
    _check_plugins(config, source)
    _check_out(config, source)
    return _with_found_paths(config, path.parent)


def _refuse_other_files(path: Path) -> None:
    if path.is_dir():
        mend = f"; its config is {path / 'config.yaml'}" if (path / "config.yaml").exists() else ""
        raise InputError(f"this is a folder, where a config file is wanted{mend}", file=path)
    if not path.exists():
        raise InputError("there is no such config file; finemesh init DATA writes one", file=path)
    if path.suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet"):
        raise InputError(f"this is a data file, where a config is wanted: finemesh init {path} writes one", file=path)


def _merged(values: dict[str, Any], options: Mapping[str, Any], out: str) -> dict[str, Any]:
    """The file's values with the options over them. A field that is left empty (`hours:`) counts as left out."""
    merged: dict[str, Any] = {"out": out, "data": {}}
    for name, value in values.items():
        if isinstance(value, dict) and name in ("data", "search", "ray"):
            merged[name] = {inner: field for inner, field in value.items() if field is not None}
        elif value is not None:
            merged[name] = value
    for option, value in options.items():
        *section, name = option.split(".")
        target = merged
        for part in section:
            if not isinstance(target.setdefault(part, {}), dict):
                return merged  # the file's section is of a wrong type: validation says so
            target = target[part]
        target[name] = value
    return merged


def _check_plugins(config: Config, source: Source) -> None:
    """Optimizers, methods and hyperparameters, by the tables that know them (which bring torch, hence so late)."""
    from finemesh.search.samplers import OPTIMIZERS
    from finemesh.search.space import Space
    from finemesh.tuning.methods import METHODS

    optimizer = config.search.optimizer
    if optimizer not in OPTIMIZERS:
        unknown = f"there is no optimizer {optimizer}.{nearest(optimizer, OPTIMIZERS)}"
        raise source.error(("search", "optimizer"), unknown)
    _check_fidelity(config.search, source)
    space = Space({name: method.space for name, method in METHODS.items()})
    for index, (method, written) in enumerate((config.spaces or {}).items()):
        if method not in METHODS:
            place = index if isinstance(config.methods, list) else method
            raise source.error(("methods", place), f"there is no method {method}.{nearest(method, METHODS)}")
        for name, value in written.items():
            if value is None:
                raise source.error(("methods", method, name), "empty; give a value, a range [low, high] or choices")
            try:
                space.narrowed({method: {name: value}})
            except InputError as error:
                line = source.document.line(("methods", method, name))
                raise InputError(str(error), file=source.path, line=line) from None


def _check_fidelity(search: SearchConfig, source: Source) -> None:
    from finemesh.search.fidelities import FIDELITIES

    fidelity, steps, least = search.fidelity, search.steps, search.min_steps
    if fidelity not in FIDELITIES:
        raise source.error(("search", "fidelity"), f"there is no fidelity rule {fidelity}.{nearest(fidelity, FIDELITIES)}")
    if fidelity != "full" and len(search.objectives) > 1:
        raise source.error(("search", "fidelity"), f"{fidelity} compares trials by their losses before their end, and "
                           f"search.objectives are {len(search.objectives)}: choose full, or keep [{LOSS}] alone")
    if least is not None and fidelity == "full":
        raise source.error(("search", "min_steps"), "all trials go their full length where search.fidelity is full: leave "
                           "it out, or choose halving, hyperband or curve")
    if least is not None and least >= steps:
        raise source.error(("search", "min_steps"), f"{least} is not below search.steps, the {steps} steps of a full trial: "
                           "give less, or more steps")
    if fidelity in ("halving", "hyperband") and round(steps / search.reduction) < (least or 1):
        field, value = ("reduction", search.reduction) if least is None else ("min_steps", least)
        raise source.error(("search", field), f"{value} is too many: the rung below a full trial has search.steps / "
                           f"search.reduction = {steps} / {search.reduction} steps; give less, or more steps")


def _check_out(config: Config, source: Source) -> None:
    out = Path(config.out)
    for part in (out, *out.parents):
        if part.exists() and not part.is_dir():
            raise source.error(("out",), f"{part} is a file, where a folder is wanted: choose another folder")


def _with_found_paths(config: Config, folder: Path) -> Config:
    """A path that does not exist from here, but does from the config's folder, is that one."""
    def found(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        path = Path(value).expanduser()
        beside = folder / path
        return str(beside) if not path.exists() and beside.exists() else str(path) if value.startswith("~") else value

    data = {name: found(getattr(config.data, name)) for name in ("train", "validation", "test")}
    search = config.search.model_copy(update={"earlier": [found(folder) for folder in config.search.earlier]})
    if config.data.tasks:
        data["tasks"] = {name: task.model_copy(update={"train": found(task.train)}) for name, task in config.data.tasks.items()}
    return config.model_copy(update={"model": found(config.model), "data": config.data.model_copy(update=data),
                                     "search": search})
