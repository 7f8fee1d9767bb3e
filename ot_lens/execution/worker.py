"""A model in another process, and what that process does with it."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ot_lens.execution.modules import import_modules

Warned = list[tuple[type[Warning], str]]


class Worker:
    """One model in one process, loaded when it is first needed."""

    def __init__(self, model: Mapping[str, Any], threads: int, modules: Sequence[str] = ()) -> None:
        # Sums depend on the number of threads: torch uses as many as in the driver.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import torch

        torch.set_num_threads(threads)
        self._arguments, self._modules = dict(model), tuple(modules)

    @cached_property
    def _model(self) -> Any:
        from transformers.utils import logging

        from ot_lens.models import load_model

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        import_modules(self._modules)
        return load_model(**self._arguments)

    def load(self) -> None:
        """Load the model."""
        _ = self._model

    def call(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]
    ) -> tuple[Any, Warned]:
        """function(model, ...), and the warnings of this package that it raised."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = function(self._model, *arguments, **options)
        ours = [w for w in caught if w.category.__module__.startswith("ot_lens.")]
        return result, [(w.category, str(w.message)) for w in ours]

    def listed(
        self, function: Callable[..., Iterator[Any]], arguments: Sequence[Any], task: Any
    ) -> tuple[list[Any], Warned]:
        """All that function(model, *arguments, [task]) yields, and its warnings."""
        return self.call(lambda *given: list(function(*given)), (*arguments, [task]), {})


def warn_again(warned: Warned) -> None:
    """Give the warnings of a worker in this process."""
    for category, message in warned:
        warnings.warn(message, category, stacklevel=5)
