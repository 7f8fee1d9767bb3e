"""Public prompt sets by name: where each is read, its columns, its licence; never the text of a prompt."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import listed
from ot_lens.prompts.data import CLASSES, SPLITS
from ot_lens.prompts.tables import Table


@dataclass(frozen=True)
class Preset:
    """One public set of one class; its fields are those of presets.json.

    `home` is a GitHub repository, whose `files` are joined, or hf:NAME:CONFIG:SPLIT. `text` lists columns
    that may hold the prompt; the first one present counts. `without` lists (column, regular expression) of
    rows to leave out, and `local` alternatives to `files` under a root folder, each the complete set.
    """

    name: str
    label: str
    licence: str
    home: str
    files: tuple[str, ...] = ()
    text: tuple[str, ...] = ("instruction",)
    without: tuple[tuple[str, str], ...] = ()
    local: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    note: str = ""

    def in_language(self, language: str) -> "Preset":
        """The preset of one of its languages, named as NAME:LANGUAGE; a set in one language has none."""
        if not self.languages and not language:
            return self
        if language not in self.languages:
            available = ", ".join(f"{self.name}:{name}" for name in self.languages) or self.name
            raise PromptError(f"There is no {self.name}:{language}: choose {available}.")
        files = tuple(path.format(language=language) for path in self.files)
        return replace(self, name=f"{self.name}:{language}", files=files, languages=())

    @property
    def source(self) -> str:
        """Where it is published."""
        if self.home.startswith("hf:"):
            return f"https://huggingface.co/datasets/{self.home.split(':')[1]}"
        return f"https://github.com/{self.home} ({', '.join(self.files)})"

    def under(self, root: Path) -> list[Path]:
        """Its files in a folder: a clone of its repository or of refusal_direction, or the bare files."""
        choices = [self.files, *((path,) for path in self.local)]
        choices += [(Path(paths[0]).name,) for paths in choices if len(paths) == 1]
        for paths in choices:
            if paths and all((root / path).is_file() for path in paths):
                return [root / path for path in paths]
        tried = ", ".join(" and ".join(paths) for paths in dict.fromkeys(choices) if paths)
        raise PromptError(f"There is no {self.name} under {str(root)!r}: tried {tried}.")

    def prompts(self, table: Table) -> tuple[Table, str, int]:
        """The rows that count, stripped; the column of their text; and how many rows were left out."""
        column = next((c for c in self.text if c in table.columns), None)
        if column is None:
            raise PromptError(
                f"{table.name} is not the {self.name} file: no column {' or '.join(self.text)} among "
                f"{listed(table.columns)}."
            )
        rows = set(range(len(table)))
        for name, pattern in self.without:
            cells = table.columns.get(name, [])
            rows -= {i for i, cell in enumerate(cells) if re.search(pattern, str(cell or ""), re.I)}
        included = table.rows(sorted(rows))
        for name, cells in included.columns.items():
            included.columns[name] = [cell.strip() if isinstance(cell, str) else cell for cell in cells]
        return included, column, len(table) - len(rows)


# Behaviours of HarmBench that reproduce copyrighted text or need a context string are not plain instructions;
# Arditi et al. 2024 leave them out as well (dataset/generate_datasets.ipynb).
_CONTENT = json.loads((files("ot_lens") / "prompts" / "presets.json").read_text("utf-8"))
PRESETS = {preset.name: preset for preset in TypeAdapter(list[Preset]).validate_python(_CONTENT["presets"])}
# Complete sets: licence, source and note by name.
SETS: Mapping[str, Mapping[str, str]] = _CONTENT["sets"]
# The data of arXiv 2603.04355, which does not state the seed or the number of harmless test prompts (here
# 100, as in the refusal_direction repository).
PAPER: Mapping[str, Any] = _CONTENT["paper"]

# Harmful train: AdvBench (128 of it), MaliciousInstruct, TDC2023; val: HarmBench val; test: JailbreakBench,
# HarmBench test, StrongREJECT; harmless: Alpaca, 60 / 20 / 20 %.
REFUSAL_DIRECTION = "andyrdt/refusal_direction"
REFUSAL_DIRECTION_REVISION = "9d852fae1a9121c78b29142de733cb1340770cc3"  # of its published runs


def described_set(name: str) -> Mapping[str, Any] | None:
    """The description of a complete set that consists of presets: "paper", "polyrefuse:LANGUAGE"."""
    if name == "paper":
        return PAPER
    family, _, language = name.partition(":")
    if family != "polyrefuse":
        return None
    splits = {label: {s: f"polyrefuse_{label}_{s}:{language}" for s in SPLITS} for label in CLASSES}
    return {"name": f"polyrefuse:{language}", "sources": splits}


def preset_table() -> pd.DataFrame:
    """Every preset: complete sets (class "both"), then sources of one class.

    Returns:
        Tidy: name, class, licence, source, columns (that may hold the prompt), note.
    """
    both = [{"name": name, "class": "both", "columns": "", **known} for name, known in SETS.items()]
    one = [
        {**vars(preset), "class": preset.label, "source": preset.source, "columns": ", ".join(preset.text)}
        for preset in PRESETS.values()
    ]
    return pd.DataFrame(both + one, columns=["name", "class", "licence", "source", "columns", "note"])
