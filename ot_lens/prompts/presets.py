"""Public prompt sets by name: where each is read, its columns, its licence; never the text of a prompt."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter

from ot_lens.errors import PromptError
from ot_lens.io.untrusted import listed
from ot_lens.prompts.tables import Table

_RAW = "https://raw.githubusercontent.com/{repository}/{revision}/{path}"


@dataclass(frozen=True)
class Preset:
    """One public set of one class.

    Attributes:
        name: Name, as a source.
        label: Class of its prompts.
        licence: At its source; "unknown" if that is not certain.
        home: GitHub repository, or dataset on the hub as hf:NAME:CONFIG:SPLIT.
        files: Paths in that repository; their rows are joined.
        text: Columns that may hold the prompt; the first one present counts.
        without: Rows to leave out, as (column, regular expression to search in it).
        local: Alternatives to `files` under a root folder, each the complete set.
        note: Anything else a user should know.
    """

    name: str
    label: str
    licence: str
    home: str
    files: tuple[str, ...] = ()
    text: tuple[str, ...] = ("instruction",)
    without: tuple[tuple[str, str], ...] = ()
    local: tuple[str, ...] = ()
    note: str = ""

    @property
    def source(self) -> str:
        """Where it is published."""
        if self.home.startswith("hf:"):
            return f"https://huggingface.co/datasets/{self.home.split(':')[1]}"
        return f"https://github.com/{self.home} ({', '.join(self.files)})"

    def addresses(self, revision: str) -> list[str]:
        """Addresses of its files at a revision (branch, tag or commit) of its repository."""
        return [_RAW.format(repository=self.home, revision=revision, path=path) for path in self.files]

    def under(self, root: Path) -> list[Path]:
        """Its files in a folder: a clone of its repository or of refusal_direction, or the bare files."""
        choices = [self.files, *((path,) for path in self.local)]
        choices += [tuple(Path(path).name for path in self.files)] if len(self.files) == 1 else []
        choices += [(Path(path).name,) for path in self.local]
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
        rows = [i for i in range(len(table)) if not self._left_out(table, i)]
        cells = {name: [_stripped(values[i]) for i in rows] for name, values in table.columns.items()}
        numbers = [table.numbers[i] if table.numbers else i + 1 for i in rows]
        return Table(table.name, cells, table.row, numbers), column, len(table) - len(rows)

    def _left_out(self, table: Table, index: int) -> bool:
        return any(
            column in table.columns and re.search(pattern, str(table.columns[column][index] or ""), re.I)
            for column, pattern in self.without
        )


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _presets() -> dict[str, Preset]:
    """The presets of presets.json.

    Behaviours of HarmBench that reproduce copyrighted text or need a context string are not plain
    instructions; Arditi et al. 2024 leave them out as well (dataset/generate_datasets.ipynb).
    """
    text = (files("ot_lens") / "prompts" / "presets.json").read_text("utf-8")
    presets = TypeAdapter(list[Preset]).validate_json(text)
    return {preset.name: preset for preset in presets}


PRESETS = _presets()

# Harmful train: AdvBench (128 of it), MaliciousInstruct, TDC2023; val: HarmBench val; test: JailbreakBench,
# HarmBench test, StrongREJECT; harmless: Alpaca, 60 / 20 / 20 %.
REFUSAL_DIRECTION = "andyrdt/refusal_direction"
REFUSAL_DIRECTION_REVISION = "9d852fae1a9121c78b29142de733cb1340770cc3"  # of its published runs
REFUSAL_DIRECTION_LICENCE = (
    "Apache-2.0 (the repository); its prompts: MIT (AdvBench, HarmBench, JailbreakBench, StrongREJECT), none "
    "(MaliciousInstruct), unknown (TDC2023), CC BY-NC 4.0 (Alpaca)"
)


def split_file(label: str, split: str) -> str:
    """Path of one split of one class in the refusal_direction repository."""
    return f"dataset/splits/{label}_{split}.json"


# The data of arXiv 2603.04355, which does not state the seed or the number of harmless test prompts (here
# 100, as in the refusal_direction repository).
PAPER: Mapping[str, object] = {
    "name": "paper",
    "sources": {
        "harmful": {
            "train": ["advbench", "malicious_instruct", "tdc2023"],
            "val": "harmbench_val",
            "test": "harmbench_test",
        },
        "harmless": "alpaca",
    },
    "sample": {"harmful": [128, 32], "harmless": [128, 32, 100]},
}
SETS = {
    "organism": ("MIT", "ot_lens.organism.prompt_data", "the prompts of the embedded models"),
    "refusal_direction": (
        REFUSAL_DIRECTION_LICENCE,
        f"https://github.com/{REFUSAL_DIRECTION}",
        "its own splits, 128 / 32 drawn with its routine and seed 42; 100 harmless test prompts",
    ),
    "paper": (
        "see its parts",
        "advbench, malicious_instruct, tdc2023, harmbench_val, harmbench_test, alpaca",
        "arXiv 2603.04355: 128 / 32 per class, HarmBench test; not stated there: seed, harmless test (100)",
    ),
}


def preset_table() -> pd.DataFrame:
    """Every preset: complete sets (class "both"), then sources of one class.

    Returns:
        Tidy: name, class, licence, source, columns (that may hold the prompt), note.
    """
    both = [
        {"name": name, "class": "both", "licence": licence, "source": source, "columns": "", "note": note}
        for name, (licence, source, note) in SETS.items()
    ]
    one = [
        {
            "name": preset.name,
            "class": preset.label,
            "licence": preset.licence,
            "source": preset.source,
            "columns": ", ".join(preset.text),
            "note": preset.note,
        }
        for preset in PRESETS.values()
    ]
    return pd.DataFrame(both + one)
