"""Configurations on the command line: `--set KEY=VALUE`, and writing one for its user to edit."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ot_lens.cli.console import say
from ot_lens.errors import ConfigError, RunFolderError
from ot_lens.io.untrusted import parse_yaml

if TYPE_CHECKING:
    from ot_lens.study import StudyConfig

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a field of the configuration to a YAML value; repeatable."
    ),
]


def parse_settings(settings: Sequence[str] | None) -> dict[str, Any]:
    """The value of each field; if one is given several times, the last counts."""
    overrides = {}
    for setting in settings or ():
        key, separator, value = setting.partition("=")
        if not (separator and key.strip()):
            raise ConfigError(f"--set {setting!r}: give a field and its value, as in --set seed=3.")
        overrides[key.strip()] = parse_yaml(value, f"--set {key.strip()}", ConfigError)
    return overrides


def write_configuration(path: Path, config: "StudyConfig | None" = None) -> None:
    """Write a configuration, by default the default one, each field under its description."""
    from ot_lens.io.files import write_text
    from ot_lens.study import commented_yaml

    if path.exists():
        raise RunFolderError(f"{path} exists already and is not overwritten: choose another name.")
    write_text(path, commented_yaml(config))
    say(f"wrote {path}; run it with: ot-lens run {path}")
