"""LoRA: W x + (alpha / rank) B A x with W frozen. Hu et al., arXiv 2106.09685.

The scale is searched as alpha / rank, so that rank and scale are not confounded.
"""

from peft import LoraConfig, PeftConfig
from transformers import PreTrainedModel

from finemesh.hyperparameter import choice, integer, real
from finemesh.tuning.methods.base import PEFT_TASKS, AdapterMethod, Context, Point

ATTENTION = {  # model type -> its attention projections; the others are taken from the names below
    "gpt2": ["c_attn"],
    "bert": ["query", "key", "value"],
}


class Lora(AdapterMethod):
    name = "lora"
    summary = "low-rank increments of the linear layers"
    source = "Hu et al., arXiv 2106.09685"
    space = {
        "rank": integer(2, 128, 8, log=True),
        "alpha_over_rank": real(0.25, 16.0, 2.0, log=True),
        "dropout": real(0.0, 0.2, 0.0),
        "layers": choice(("all", "attention"), "all"),
        "learning_rate": real(1e-5, 2e-2, 2e-4, log=True),
    }
    reference = {"rank": 8, "alpha_over_rank": 2.0, "dropout": 0.0, "layers": "all", "learning_rate": 2e-4}
    mergeable = True
    peft_type = "LORA"
    gguf = True
    starts_at_base = True

    def configuration(self, model: PreTrainedModel, point: Point, context: Context) -> PeftConfig:
        every = point["layers"] == "all"
        attention = ATTENTION.get(model.config.model_type, ["q_proj", "k_proj", "v_proj", "o_proj"])
        rank = int(point["rank"])
        return LoraConfig(
            task_type=PEFT_TASKS[context.task], r=rank, lora_alpha=point["alpha_over_rank"] * rank,
            lora_dropout=point["dropout"], target_modules="all-linear" if every else attention,
            fan_in_fan_out=model.config.model_type == "gpt2",
        )
