"""Methods that show the model an instruction and demonstrations before every row: the hard prompt comes with the tuned
module, is saved with it as prompt.json, and needs no training rows any more when it is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from finemesh.errors import InputError
from finemesh.hyperparameter import Hyperparameters, choice
from finemesh.tuning.data.batches import Encoded
from finemesh.tuning.data.demonstrations import Demonstrations
from finemesh.tuning.data.examples import Dialogue, Example
from finemesh.tuning.data.hard_prompt import HardPrompt, Writing
from finemesh.tuning.methods.base import Context, Method, Point
from finemesh.tuning.models import TaskName

LOOKED_AT = 64  # training rows, to see how long a demonstration usually is
SHARE = 4  # of the context, one part at most is kept free for an answer
SOME = tuple(range(1, 65))
NONE = "none"
INSTRUCTION = "Answer directly, with nothing but what is asked for."

CHOSEN: Hyperparameters = {  # which demonstrations, and how they are written; k is each method's own
    "selection": choice(("fixed", "random", "similar"), "similar", when=("k", SOME)),
    "order": choice(("similar_last", "similar_first", "random"), "similar_last", when=("selection", ("similar",))),
    "template": choice(("turns", "message"), "turns", when=("k", SOME)),
}


class Prompting(Method):
    tasks = ("instruct",)

    def unfit(self, model: PreTrainedModel, task: TaskName) -> str | None:
        if task not in self.tasks:
            return (f"it writes answered examples before a question, which a model that does task: {task} has not learned to "
                    "read (with task: instruct the labels can be answers)")
        return None

    def refuses(self, model: PreTrainedModel, point: Point, context: Context) -> str | None:
        if not str(point["instruction"]).strip():
            return f"the instruction is blank: say what the model is to do, or write {NONE}"
        k, room = int(point["k"]), context.context_length - self.vectors(point)
        try:
            prompt = self.written(point, context)
            writing = Writing(context.tokenizer, prompt.template, prompt.instruction)
            examples, rows = context.train[:LOOKED_AT], context.encoded[:LOOKED_AT]
            framed = [(writing.frame(example), example, row) for example, row in zip(examples, rows, strict=True)
                      if isinstance(example, Dialogue)]
            each = [len(writing.block(frame, example)) for frame, example, _ in framed]
        except InputError as error:
            return str(error)
        available = len(prompt.demonstrations.dialogues) - 1
        if k > available:
            return (f"{k} demonstrations are more than there are: beside the row itself, {max(0, available)} training rows "
                    f"with distinct questions lie whole within data.max_length {context.max_length}. Give a smaller k")
        typical = round(median(each))
        row = round(median(len(frame.head) + len(row.input_ids) - frame.replaces(row) for frame, _, row in framed))
        if k * typical + row <= room:
            return None
        what = f"{k} demonstrations of about {typical} tokens before a row of {row}" if k else f"a row of {row} tokens"
        beside = f" beside {self.vectors(point)} trained vectors" if self.vectors(point) else ""
        fit = max(0, (room - row) // typical)
        return (f"{what} are {k * typical + row} tokens, and the model's context has {room}{beside}: "
                f"{f'at most {fit} fit, give a smaller k' if fit else 'none fits, use another method or shorter rows'}")

    def vectors(self, point: Point) -> int:
        """The trained vectors before the hard prompt, which take their room of the context."""
        return 0

    def written(self, point: Point, context: Context) -> HardPrompt:
        """The prompt of the point, with demonstrations to choose from as the context's seed draws them."""
        instruction = str(point["instruction"]).strip()
        longest = max((sum(row.scored) for row in context.encoded), default=0)
        return HardPrompt(
            int(point["k"]), point.get("selection", "fixed"), point.get("order", "similar_last"),
            point.get("template", "turns"), "" if instruction == NONE else instruction,
            min(longest, context.context_length // SHARE),
            Demonstrations.drawn(context.train, context.encoded, context.max_length, context.seed))

    def shape(self, tuned: Any, examples: Sequence[Example], encoded: Sequence[Encoded], point: Point, context: Context,
              *, training: bool) -> Sequence[Encoded]:
        shown = tuned.hard_prompt.before(examples, encoded, context.tokenizer,
                                         context.context_length - self.vectors(point))
        tuned.left_out = shown.left_out
        return shown.rows

    def counts(self, tuned: Any) -> Mapping[str, float]:
        return {"demonstrations_left_out": tuned.left_out}

    def save(self, tuned: Any, folder: Path, base_name: str) -> None:
        super().save(tuned, folder, base_name)
        tuned.hard_prompt.save(folder)

    def load(self, model: PreTrainedModel, folder: Path) -> nn.Module:
        tuned: Any = super().load(model, folder)
        tuned.hard_prompt = HardPrompt.load(folder)
        return tuned
