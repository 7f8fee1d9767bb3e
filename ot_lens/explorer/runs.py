"""An opened run: its tables, maps, activations and prompts, each read once, on first use."""

import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from cachetools import LRUCache

from ot_lens.activations import Activations, load_activations
from ot_lens.errors import ConfigError, FitError, OtLensError, RunFolderError, TableError
from ot_lens.localization import MethodSpec, as_methods
from ot_lens.prompts import load_prompts
from ot_lens.study import RunFolder, StudyConfig, map_folder, parse_config
from ot_lens.transport import ActivationMap, load_map

SPLIT = "test"
Made = TypeVar("Made")


class OpenRun:
    """A run folder that pages are served from. It is only read, and only files with fixed names.

    `tables` holds every table that can be read, `faults` why another table or the maps of a method cannot.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        """Open a run; a RunFolderError says that the folder holds none."""
        self._folder = RunFolder.open(Path(path))
        self.path = self._folder.path.resolve()
        self.name = name or self.path.name
        self.manifest: Mapping[str, Any] = self._folder.manifest
        self._kept: LRUCache[Any, Any] = LRUCache(256)
        self._lock = threading.Lock()
        self.tables: dict[str, pd.DataFrame] = {}
        self.faults: dict[str, str] = {}
        for stem in self._folder.table_names:
            try:
                self.tables[stem] = self._folder.read_table(stem)
            except RunFolderError as error:
                self.faults[stem] = str(error)

    def kept(self, key: Any, make: Callable[[], Made]) -> Made:
        """A view or map, made if it is not among those used last; two threads may both make it."""
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
        return made

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self._folder.finished

    def table(self, name: str) -> pd.DataFrame:
        """A table by name; a TableError says that the run has none, or that it is damaged."""
        if name not in self.tables:
            raise TableError(self.faults.get(name, f"This run has no table {name!r}."))
        return self.tables[name]

    @cached_property
    def config(self) -> StudyConfig | None:
        """The configuration; None if this version cannot read it."""
        try:
            return parse_config(dict(self.manifest.get("config") or {}), str(self.path))
        except ConfigError:
            return None

    @property
    def position(self) -> int:
        """Token position of the fits."""
        return self.config.position if self.config is not None else -1

    @cached_property
    def map_folders(self) -> dict[str, tuple[MethodSpec, str]]:
        """Methods with readable maps: key (see `method_key`) -> (method, folder under maps/)."""
        try:
            methods = as_methods(self.config.method_entries) if self.config is not None else []
        except FitError:
            return {}
        readable = {}
        for method in methods:
            folder = map_folder(method)
            files = sorted((self.path / "maps" / folder).glob("layer-*.safetensors"))
            try:
                k = method.k([load_map(path) for path in files[:1]])
            except OtLensError as error:
                self.faults[folder] = str(error)
                continue
            if files:
                readable[method_key(method.name, k)] = (method, folder)
        return readable

    def map_path(self, key: str, layer: int) -> Path:
        """The file of a method's map at a layer; a RunFolderError says that the run holds none."""
        if key in self.map_folders:
            path = self.path / "maps" / self.map_folders[key][1] / f"layer-{layer:03d}.safetensors"
            if path.is_file():
                return path
        raise RunFolderError(f"This run holds no map of {key} at layer {layer}.")

    def map(self, key: str, layer: int) -> ActivationMap:
        """The stored map of a method at a layer; see `map_path`."""
        path = self.map_path(key, layer)
        return self.kept(("map", key, layer), lambda: load_map(path))

    @cached_property
    def activations(self) -> Activations | None:
        """Activations of the held-out prompts; None if the run does not hold them completely."""
        try:
            return load_activations(self.path / "activations" / SPLIT)
        except OtLensError:
            return None

    @cached_property
    def training(self) -> Activations | None:
        """Activations of the training prompts, which other methods can be fitted to; None as above."""
        try:
            return load_activations(self.path / "activations" / "train")
        except OtLensError:
            return None

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """Texts of the held-out prompts by class; empty if the prompts at hand are not those of the run."""
        config, known = self.config, (self.manifest.get("prompts") or {}).get("sha256", {})
        if config is None:
            return {}
        try:
            contrast = load_prompts(
                config.prompts, seed=config.seed, sample=config.sample, root=config.prompts_root
            ).test
        except OtLensError:
            return {}
        if contrast.sha256 != known.get(SPLIT):
            return {}
        return {label: [prompt.text for prompt in prompts] for label, prompts in contrast}


def method_key(method: str, k: Any = None) -> str:
    """A method and its rank as one word: "pca_ot:4", or "mean_shift" without a rank."""
    return method if k is None or pd.isna(k) else f"{method}:{int(k)}"


def split_key(key: str) -> tuple[str, int | None]:
    """The inverse of `method_key`."""
    name, _, k = key.partition(":")
    return name, int(k) if k.isdigit() else None
