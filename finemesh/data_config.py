"""The data section of finemesh.yaml: one data set, or the tasks of an instruction mixture."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from finemesh.errors import nearest
from finemesh.tuning.data.cells import written
from finemesh.tuning.data.instructions import EXAMPLE, Template


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: Any) -> Any:
        wanted = set(get_args(annotation := cls.model_fields[info.field_name].annotation)) or {annotation}
        if wanted & {int, float} and str not in wanted and isinstance(value, bool | str):
            raise ValueError(f"must be a number, not {value!r}")
        return value


def _names_or_positions(columns: Any) -> Any:
    for field, column in columns.items() if isinstance(columns, dict) else ():
        if isinstance(column, bool) or not isinstance(column, str | int):
            raise ValueError(f"{field} must be the name of a column, or its position from 0, not {column!r}")
    return columns


Columns = Annotated[dict[str, str | int], BeforeValidator(_names_or_positions)]


def _template(text: str) -> str:
    Template.read(text)
    return text


class TaskConfig(Section):
    """A task of an instruction mixture. Without a `cluster` it is one of its own, under its name."""

    train: str = Field(min_length=1)
    templates: list[Annotated[str, AfterValidator(_template)]]
    cap: int | None = Field(default=None, ge=1)  # at most so many rows of the task; None: all
    cluster: str | None = Field(default=None, min_length=1)
    columns: Columns = {}  # of names in the templates; a position where the file has no header line
    labels: dict[str, str] = {}  # words for the values of the column that is answered with

    @field_validator("templates", mode="before")
    @classmethod
    def _some_template(cls, templates: Any) -> Any:
        if isinstance(templates, str) or not templates:
            raise ValueError(f"must be a list of at least one template such as [{EXAMPLE}], not {templates!r}")
        return templates

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_as_text(cls, labels: Any) -> Any:
        return {written(name): word for name, word in labels.items()} if isinstance(labels, dict) else labels

    @field_validator("labels")
    @classmethod
    def _labels_of_one_column(cls, labels: dict[str, str], info: Any) -> dict[str, str]:
        templates = info.data.get("templates")
        if labels and templates and len(Template.read(templates[0]).answers) != 1:
            raise ValueError("words for the labels need one column to be answered with: let the first template's answer "
                             "name only that one")
        return labels


class DataConfig(Section):
    """Either `train`, or `tasks` with perhaps clusters of them that are held out."""

    tasks: dict[str, TaskConfig] | None = None
    held_out: list[str] | None = None
    train: str | None = Field(default=None, min_length=1, validate_default=True)
    validation: float | str = 0.1  # a share of the training rows, or a file
    test: float | str = 0.1
    max_length: int = Field(default=512, ge=2)
    columns: Columns = {}  # a name, or a position where the file has no header line

    @property
    def clusters(self) -> dict[str, str]:
        """The cluster of each task."""
        return {name: task.cluster or name for name, task in (self.tasks or {}).items()}

    @property
    def source(self) -> str:
        """Where the rows come from, in words."""
        return self.train or self._named(self.clusters)

    @property
    def named(self) -> dict[str, str]:
        """By field (tasks/NAME/train of a task), the files, hub data sets and packages that rows are taken from."""
        given = {"train": self.train, "validation": self.validation, "test": self.test,
                 **{f"tasks/{name}/train": task.train for name, task in (self.tasks or {}).items()}}
        return {field: name for field, name in given.items() if isinstance(name, str)}

    @property
    def trained_on(self) -> str:
        """The source without the tasks that are held out."""
        held_out = self.held_out or ()
        return self.train or self._named(name for name, cluster in self.clusters.items() if cluster not in held_out)

    def _named(self, tasks: Iterable[str]) -> str:
        return ", ".join(f"{name} ({(self.tasks or {})[name].train})" for name in tasks)

    @field_validator("tasks")
    @classmethod
    def _some_task(cls, tasks: dict[str, TaskConfig] | None) -> dict[str, TaskConfig] | None:
        if tasks is not None and not tasks:
            raise ValueError("no task is named: give at least one as {NAME: {train: FILE, templates: [...]}}, or "
                             "data.train in place of data.tasks")
        return tasks

    @field_validator("held_out")
    @classmethod
    def _some_clusters(cls, held_out: list[str] | None, info: Any) -> list[str] | None:
        tasks = info.data.get("tasks")
        if not held_out or "tasks" not in info.data:  # what is wrong with the tasks is said already
            return None
        if tasks is None:
            raise ValueError("there is nothing to hold out without data.tasks: name the tasks with their clusters")
        clusters = {task.cluster or name for name, task in tasks.items()}
        for cluster in held_out:
            if cluster not in clusters:
                raise ValueError(f"no task has the cluster {cluster}.{nearest(cluster, clusters)}")
        if len(set(held_out)) < len(held_out):
            raise ValueError("a cluster is named twice: keep one of them")
        if clusters == set(held_out):
            all_of = f"{held_out[0]} is the only cluster" if len(clusters) == 1 else "every cluster is held out"
            raise ValueError(f"{all_of}, so that no task is left to train on: add a task of another cluster, or leave "
                             "one out here")
        return held_out

    @field_validator("train")
    @classmethod
    def _train_or_tasks(cls, train: str | None, info: Any) -> str | None:
        if train is None and info.data.get("tasks", ...) is None:
            raise PydanticCustomError("missing", "missing")
        if train is not None and info.data.get("tasks") is not None:
            raise ValueError("train and tasks are both given: keep one of them (rows without a template are a task with "
                             'the template "{prompt} => {completion}")')
        return train

    @field_validator("columns")
    @classmethod
    def _columns_of_one_file(cls, columns: dict[str, str | int], info: Any) -> dict[str, str | int]:
        if columns and info.data.get("tasks"):
            raise ValueError("every task has columns of its own: write them below the task, or name the columns in the "
                             "templates as the file does")
        return columns

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _share_or_file(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"must be a share of the rows such as 0.1, or a file, not {value!r}")
        if isinstance(value, str) and re.fullmatch(r"[\d.]+\s*%?", value):
            raise ValueError(f"a share is written as a number such as 0.1, without quotes or %, not {value!r}")
        if isinstance(value, str) and info.data.get("tasks"):
            raise ValueError(f"with data.tasks it must be a share such as 0.1, not the file {value!r}: rows to judge by are "
                             "those of held-out clusters, or a share of every task")
        if isinstance(value, int | float) and not 0 < value < 1:
            raise ValueError(f"a share of the rows must be more than 0 and less than 1, such as 0.1, not {value}")
        return value

    @model_validator(mode="after")
    def _some_rows_are_left(self) -> "DataConfig":
        shares = [share for share in (self.validation, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError(f"validation and test take {sum(shares):g} of the rows together, which leaves none for "
                             "training: make them add up to less than 1")
        return self
