"""The splits of the refusal_direction repository, drawn as it draws them (Arditi et al. 2024)."""

import random
from pathlib import Path
from typing import Any

from ot_lens.errors import PromptError
from ot_lens.prompts.hub import fetch
from ot_lens.prompts.presets import REFUSAL_DIRECTION, REFUSAL_DIRECTION_REVISION, split_file
from ot_lens.prompts.rows import Row, rows_of
from ot_lens.prompts.splitting import Pools
from ot_lens.prompts.tables import read_bytes, read_table, sha256

SEED = 42
# Sizes from pipeline/config.py; order of the draws from one generator as in pipeline/run_pipeline.py.
DRAWS = (
    ("harmful", "train", 128),
    ("harmless", "train", 128),
    ("harmful", "val", 32),
    ("harmless", "val", 32),
    ("harmless", "test", 100),
)


def read_refusal_direction(root: Path | None, revision: str | None) -> tuple[Pools, list[dict[str, Any]]]:
    """Its prompts by class and split, and a record of each of its files.

    All harmful test prompts are used: JailbreakBench, HarmBench test and StrongREJECT. Its pipeline then
    filters train and val by the model's refusal score: see `filter_by_behaviour`.

    Args:
        root: A clone of the repository; default: read from GitHub.
        revision: Branch, tag or commit there; default: that of the published runs.
    """
    generator = random.Random(SEED)  # noqa: S311 - the published draw, the same stream as random.seed(42)
    pools: dict[str, dict[str | None, list[Row]]] = {"harmful": {}, "harmless": {}}
    records = []
    for label, split, size in (*DRAWS, ("harmful", "test", None)):
        rows, record = _read(label, split, root, revision or REFUSAL_DIRECTION_REVISION)
        if size is not None:
            if len(rows) < size:
                raise PromptError(
                    f"{record['source']} has {len(rows)} prompts, fewer than the {size} to draw."
                )
            rows = generator.sample(rows, size)
        pools[label][split] = rows
        records.append({**record, "class": label, "split": split, "drawn": len(rows)})
    return pools, records


def _read(label: str, split: str, root: Path | None, revision: str) -> tuple[list[Row], dict[str, Any]]:
    path = split_file(label, split)
    if root is not None:
        name, content = str(root / path), read_bytes(root / path)
    else:
        name = f"https://raw.githubusercontent.com/{REFUSAL_DIRECTION}/{revision}/{path}"
        content = read_bytes(fetch(name))
    rows = rows_of(read_table(Path(name), content), {"text": "instruction"})
    read_from = None if root is not None else revision
    return rows, {"source": name, "revision": read_from, "sha256": sha256(content), "rows": len(rows)}
