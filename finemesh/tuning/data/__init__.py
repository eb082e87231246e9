"""Data: files become rows, rows examples, examples three splits, and splits batches of tokens.

files.py -> formats.py (examples.py) -> split.py -> batches.py (turns.py). `load` in split.py does the first three;
only batches.py meets a tokenizer, and only its `collate` torch.
"""
