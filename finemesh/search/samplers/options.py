"""What may be chosen of a NomadSampler's search."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """NomadSampler's docstring says what they are."""

    quadratic_model_search: bool = True
    nelder_mead_search: bool = True
    latin_hypercube: int | None = None
