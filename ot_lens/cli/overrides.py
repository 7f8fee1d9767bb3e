"""`--set KEY=VALUE`: fields of the configuration, given on the command line."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ot_lens.errors import ConfigError
from ot_lens.io.untrusted import parse_yaml

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a field of the configuration to a YAML value; repeatable."
    ),
]


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """Fields by name; the last of several values counts.

    Raises:
        ConfigError: If a setting is not KEY=VALUE, or its value is not YAML.
    """
    overrides = {}
    for setting in settings or ():
        key, separator, value = setting.partition("=")
        if not (separator and key.strip()):
            raise ConfigError(f"--set {setting!r}: give a field and its value, as in --set seed=3.")
        overrides[key.strip()] = parse_yaml(value, f"--set {key.strip()}", ConfigError)
    return overrides
