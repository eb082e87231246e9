"""P-tuning v2: trained keys and values before those of every layer, without reparameterization. Liu et al., arXiv 2110.07602.

For classification and regression with a trained head, as in the paper; for instructions without one.
"""

from finemesh.hyperparameter import choice, integer, real
from finemesh.tuning.methods.prefix import PrefixMethod


class PTuningV2(PrefixMethod):
    name = "p_tuning_v2"
    summary = "trained keys and values before each layer's, directly"
    source = "Liu et al., arXiv 2110.07602"
    space = {
        "length": integer(4, 200, 32, log=True),
        "init": choice(("text", "random"), "text"),
        "learning_rate": real(1e-4, 3e-1, 1e-2, log=True),
    }
    reference = {"length": 32, "init": "random", "learning_rate": 1e-2}
