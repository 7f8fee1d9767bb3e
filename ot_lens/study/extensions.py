"""The user's own code that a configuration names: imported only if that is allowed explicitly."""

from collections.abc import Sequence
from importlib import import_module

from ot_lens.errors import ConfigError
from ot_lens.io.untrusted import abbreviated
from ot_lens.study.config import StudyConfig


def import_extensions(config: StudyConfig, *, allow_code: bool) -> None:
    """Import the modules that a configuration names, so that they register what it uses.

    Raises:
        ConfigError: If it names modules and `allow_code` is not given: a file alone, which may come from a
            stranger, never makes code run. Or if a module cannot be imported.
    """
    if config.modules and not allow_code:
        raise ConfigError(
            f"The configuration imports code ({', '.join(config.modules)}): if you trust it, add "
            "--allow-code (in Python: allow_code=True)."
        )
    import_modules(config.modules)


def import_modules(names: Sequence[str]) -> None:
    """Import some modules.

    Raises:
        ConfigError: If one does not exist or is not valid Python.
    """
    for name in names:
        try:
            import_module(name)
        except (ImportError, SyntaxError) as error:
            raise ConfigError(
                f"Cannot import {name}: {abbreviated(error)}. Install its package, or put its folder on "
                "PYTHONPATH."
            ) from error
