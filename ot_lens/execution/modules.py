"""Importing modules by name, here and on workers: the user's own code, after it was allowed."""

from collections.abc import Sequence
from importlib import import_module

from ot_lens.errors import ConfigError
from ot_lens.io.untrusted import abbreviated


def import_modules(names: Sequence[str]) -> None:
    """Import some modules, so that they register what they define."""
    for name in names:
        try:
            import_module(name)
        except (ImportError, SyntaxError) as error:
            raise ConfigError(
                f"Cannot import {name}: {abbreviated(error)}. Install its package, or put its folder on "
                "PYTHONPATH."
            ) from error
