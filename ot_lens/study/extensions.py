"""The user's own code that a configuration names: imported only if that is allowed explicitly."""

from ot_lens.errors import ConfigError
from ot_lens.execution.modules import import_modules
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
