"""What runs on a worker of a Ray cluster: it loads the model once and calls functions on it."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

Said = list[tuple[type[Warning], str]]


class Worker:
    """One model in one process. A restarted worker loads it again with the first function it is to call."""

    def __init__(self, model: Mapping[str, Any], threads: int, modules: Sequence[str] = ()) -> None:
        """Prepare the process.

        Args:
            model: Arguments of `ot_lens.load_model`.
            threads: Of torch, as in the process that hands out the work: sums depend on their number.
            modules: Modules to import before the model is loaded.
        """
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import torch

        torch.set_num_threads(threads)
        self._arguments, self._modules = dict(model), tuple(modules)
        self._fetched: tuple[Any, tuple[Any, ...]] = (None, ())

    @cached_property
    def _model(self) -> Any:
        from transformers.utils import logging

        from ot_lens.execution.modules import import_modules
        from ot_lens.models import load_model

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        import_modules(self._modules)
        return load_model(**self._arguments)

    def ready(self) -> int:
        """The process's number, once it runs."""
        return os.getpid()

    def load(self) -> None:
        """Load the model, unless it is there."""
        _ = self._model

    def call(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]
    ) -> tuple[Any, Said]:
        """function(model, ...), and the warnings of this package that it gave."""
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            result = function(self._model, *arguments, **options)
        return result, _ours(given)

    def collect(
        self, function: Callable[..., Iterator[Any]], piece: Any, shared: list[Any]
    ) -> tuple[list[Any], Said]:
        """All that function(model, *arguments, [piece]) yields, and the warnings of this package it gave.

        Args:
            function: The function.
            piece: The work.
            shared: A reference to the arguments, the same for many pieces: fetched for the first of them.
        """
        import ray

        (reference,) = shared
        if self._fetched[0] != reference:
            self._fetched = (reference, ray.get(reference))

        def listed(*given: Any) -> list[Any]:
            return list(function(*given))

        return self.call(listed, (*self._fetched[1], [piece]), {})


def _ours(given: list[warnings.WarningMessage]) -> Said:
    return [(w.category, str(w.message)) for w in given if w.category.__module__.startswith("ot_lens.")]
