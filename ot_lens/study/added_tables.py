"""Tables that a package above this one adds to a run when the configuration asks for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pandas as pd

from ot_lens.study.config import StudyConfig
from ot_lens.study.folder import RunFolder

# Field of the configuration -> module that registers the table when it is imported.
MODULES = {"paper_table": "ot_lens.paper_study.table"}


@dataclass(frozen=True)
class AddedTable:
    """One more table of a run.

    Attributes:
        name: Its name under tables/.
        make: Makes it from the run folder, whose sweep is complete.
        export: Writes forms for people into a folder.
    """

    name: str
    make: Callable[[RunFolder], pd.DataFrame]
    export: Callable[[pd.DataFrame, Path], None]


_TABLES: dict[str, AddedTable] = {}


def register_table(field: str, table: AddedTable) -> None:
    """Have a table made in every run whose configuration sets a field of `MODULES`."""
    _TABLES[field] = table


def added_tables(config: StudyConfig) -> Iterator[AddedTable]:
    """The tables that a configuration asks for."""
    for field, module in MODULES.items():
        if getattr(config, field):
            import_module(module)
            yield _TABLES[field]


def write_added_tables(folder: RunFolder, config: StudyConfig) -> None:
    """Write the tables that a configuration asks for, as parquet and for people."""
    for added in added_tables(config):
        table = added.make(folder)
        folder.write_table(added.name, table)
        added.export(table, folder.path / "tables")
