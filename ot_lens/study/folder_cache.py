"""Results of named tasks in the run folder, so that a resumed run continues after them."""

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from ot_lens.study.folder import RunFolder
from ot_lens.transport import AffineMap


class FolderCache:
    """A `RunCache` of tables, maps and lists of numbers, in a folder below tables/."""

    def __init__(self, folder: RunFolder, subfolder: str) -> None:
        self._folder, self._subfolder = folder, subfolder

    def __contains__(self, name: str) -> bool:
        return self._map(name).is_file() or self._folder.has_table(self._table(name))

    def __getitem__(self, name: str) -> Any:
        if self._map(name).is_file():
            return AffineMap.load(self._map(name))
        table = self._folder.read_table(self._table(name))
        return table["result"].tolist() if list(table.columns) == ["result"] else table

    def __setitem__(self, name: str, result: Any) -> None:
        if isinstance(result, AffineMap):
            result.save(self._map(name))
            return
        table = result if isinstance(result, pd.DataFrame) else pd.DataFrame({"result": result})
        self._folder.write_table(self._table(name), table)

    def _table(self, name: str) -> str:
        """The table of a result, whose name may not be a file name."""
        return f"{self._subfolder}/{hashlib.sha256(name.encode()).hexdigest()[:20]}"

    def _map(self, name: str) -> Path:
        return self._folder.path / "tables" / f"{self._table(name)}.safetensors"
