"""Writing a configuration for its user to edit."""

from pathlib import Path
from typing import TYPE_CHECKING

from ot_lens.cli.console import say
from ot_lens.errors import RunFolderError

if TYPE_CHECKING:
    from ot_lens.study import StudyConfig


def write_configuration(path: Path, config: "StudyConfig | None" = None) -> None:
    """Write a configuration, the default one if none is given, each field under its description.

    Raises:
        RunFolderError: If the file exists, or cannot be written.
    """
    from ot_lens.io.files import write_text
    from ot_lens.study import commented_yaml

    if path.exists():
        raise RunFolderError(f"{path} exists already: choose another name, it is not overwritten.")
    write_text(path, commented_yaml(config))
    say(f"wrote {path}; run it with: ot-lens run {path}")
