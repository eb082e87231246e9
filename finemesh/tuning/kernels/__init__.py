"""Fast arithmetic for fine-tuning Llama-type models on processors: the same losses and gradients in a fraction of the time.

    compiled.py      what compiled kernels are written with
    packing.py       a batch without padding, what all rows begin with held once
    projections.py   linear layers and their LoRA increments
    int8.py          products with frozen weights in 8-bit integers
    attention.py     causal attention as batched matrix products
    pointwise.py     RMSNorm, SwiGLU
    head.py          the cross-entropy of the vocabulary head at scored positions
    vocabulary.py    a vocabulary head that trains the tokens of answers, and all others together
    decoder.py       the way through a model's modules; when it may be taken
"""

from finemesh.tuning.kernels.decoder import common_share, runs_in_threads, scored_losses, scored_states

__all__ = ["common_share", "runs_in_threads", "scored_losses", "scored_states"]
