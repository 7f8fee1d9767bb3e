"""Models that refuse by rule: a small Llama trained from scratch, and adapters of a real language model.

Importing this package loads neither torch nor transformers; the functions do when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ot_lens.organism.vocabulary import DEFAULT_VARIANT, VARIANTS

if TYPE_CHECKING:
    from ot_lens.organism.adapters import train_adapter
    from ot_lens.organism.evaluation import evaluate
    from ot_lens.organism.export import train
    from ot_lens.organism.prompt_data import translated

__all__ = ["DEFAULT_VARIANT", "VARIANTS", "evaluate", "train", "train_adapter", "translated"]


def __getattr__(name: str) -> Any:
    """Import the functions when they are first used."""
    modules = {
        "evaluate": "evaluation",
        "train": "export",
        "train_adapter": "adapters",
        "translated": "prompt_data",
    }
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ot_lens.organism.{modules[name]}"), name)
