"""Files of a model folder or hub repository."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from os.path import isdir, isfile
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers.utils import cached_file

from ot_lens.errors import ModelError

VARIANTS = ("single", "multi", "shared", "knows-refuses", "knows-answers", "bilingual")


def locate(name: str) -> str:
    """Where the files of a model are: a folder, or a hub name as given."""
    if name == "organism" or name.startswith("organism:"):
        variant = name.partition(":")[2] or "multi"
        if variant not in VARIANTS:
            raise ModelError(f"No embedded model {name!r}: choose organism:{', organism:'.join(VARIANTS)}.")
        return str(files("ot_lens") / "organism" / "weights" / variant)
    if isdir(name):
        if not (Path(name) / "config.json").is_file():
            packed = next(iter(sorted(Path(name).glob("*.gguf"))), None)
            remedy = f" To load its GGUF file, pass gguf_file={packed.name!r}." if packed else ""
            raise ModelError(
                f"The folder {name} has no config.json: it is not a Hugging Face model folder.{remedy}"
            )
    elif isfile(name):
        raise ModelError(f"{name} is a file: give the folder that holds it with its config.json.")
    elif Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"No model folder {name!r}: check the path.")
    return name


def held_file(place: str, file: str, revision: str | None = None) -> str | None:
    """Path of a file of a folder or hub repository, or None if it has none or cannot be reached."""
    with suppress(OSError):
        found: str | None = cached_file(
            place,
            file,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return found
    return None


@contextmanager
def linked(paths: Iterable[Path]) -> Iterator[str]:
    """A folder with these files only, apart from their neighbours; extensions in lower case."""
    with TemporaryDirectory(prefix="ot_lens-") as folder:
        for path in paths:
            (Path(folder) / f"{path.stem}{path.suffix.lower()}").symlink_to(path.absolute())
        yield folder
