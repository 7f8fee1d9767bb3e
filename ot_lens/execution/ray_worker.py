"""The part that runs on a worker of a Ray cluster: it loads the model once and calls functions on it."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

Warned = list[tuple[type[Warning], str]]


class Worker:
    """One model in one process; a restarted worker loads it again when it is first needed."""

    def __init__(self, model: Mapping[str, Any], threads: int, modules: Sequence[str] = ()) -> None:
        """Prepare the process; torch uses as many threads as the driver's, since sums depend on them."""
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
        """The process id, once the process runs."""
        return os.getpid()

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

    def collect(
        self, function: Callable[..., Iterator[Any]], task: Any, shared: list[Any]
    ) -> tuple[list[Any], Warned]:
        """All that function(model, *arguments, [task]) yields, and its warnings.

        `shared` holds a reference to the arguments, which are fetched once for all tasks that share them.
        """
        import ray

        (reference,) = shared
        if self._fetched[0] != reference:
            self._fetched = (reference, ray.get(reference))
        return self.call(lambda *given: list(function(*given)), (*self._fetched[1], [task]), {})
