"""Files of a model folder or hub repository."""

from contextlib import suppress

from transformers.utils import cached_file


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
