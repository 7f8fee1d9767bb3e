"""The embedded model: a small Llama trained from scratch to refuse by rule, its language, recipe and weights.

Importing this package loads neither torch nor transformers; the functions do when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ot_lens.organism.vocabulary import DEFAULT_VARIANT, VARIANTS

if TYPE_CHECKING:
    from ot_lens.organism.evaluation import evaluate
    from ot_lens.organism.export import train

__all__ = ["DEFAULT_VARIANT", "VARIANTS", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    """Import `evaluate` and `train` when they are first used."""
    modules = {"evaluate": "evaluation", "train": "export"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ot_lens.organism.{modules[name]}"), name)
