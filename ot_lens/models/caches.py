"""Caches: which tokens are seen is for the model's masks to say; and how much a cache has read."""

import threading
from collections.abc import Container, Mapping
from inspect import signature
from typing import Any

from transformers import Cache, DynamicCache

# More tokens than any prompt has, as the window of a layer of a cache.
ENDLESS = 2**31

# Where a model takes and gives what it has read: keys and values, or the states of a recurrent model. From
# transformers 5.24 on the first name does for all.
CACHE, KEYS_AND_VALUES = "cache", "past_key_values"
NAMES = (CACHE, KEYS_AND_VALUES, "cache_params", "state")


def cache_argument(hf_model: Any) -> str:
    """What a model calls its cache of keys and values."""
    return cache_in(signature(hf_model.forward).parameters)


def cache_in(arguments: Container[str]) -> str:
    """The same by the arguments that a model or one of its layers takes."""
    return CACHE if CACHE in arguments else KEYS_AND_VALUES


class TokensRead(threading.local):
    """How many tokens a call's cache has read: states do not say it, so that the calls are counted."""

    def __init__(self) -> None:
        self._states: Any = None
        self._count = 0
        self._total = 0

    def before(self, kwargs: Mapping[str, Any], new: int) -> int:
        """The tokens before the `new` ones of a call."""
        cache = next((kwargs[name] for name in NAMES if kwargs.get(name) is not None), None)
        known = _length(cache)
        if known is None:
            known = self._count if cache is self._states else 0
        self._total = known + new
        return known

    def after(self, output: Any) -> None:
        """Note what a call gives."""
        cache = next((x for name in NAMES if (x := getattr(output, name, None)) is not None), None)
        if _length(cache) is None:
            self._states, self._count = cache, self._total


def _length(cache: Any) -> int | None:
    """How many tokens a cache has read, if it says so."""
    if cache is None:
        return 0
    if not isinstance(cache, Cache):
        return None
    try:
        return int(cache.get_seq_length())
    except ValueError:  # none of its layers is of attention
        return None


def cache_of_everything(hf_model: Any) -> Cache | None:
    """A new cache that drops no token; None if the one that `generate` makes drops none either.

    By its default a cache forgets what lies outside a window that the configuration names. Models that have
    such a window mask it as well; others (a Llama whose configuration still says `sliding_window`) would
    continue a long prompt differently than they read it without a cache.
    """
    if not hf_model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=hf_model.config.get_text_config(decoder=True))
    windows = [layer for layer in cache.layers if hasattr(layer, "sliding_window")]
    for layer in windows:
        layer.sliding_window = ENDLESS
    return cache if windows else None
