"""The command line on hostile files: exit code 2 and one line, or 0; never a traceback."""

import io
import json
import random
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import yaml
from hypothesis import strategies as st
from rich.console import Console

import ot_lens.explorer
import ot_lens.study
from ot_lens.cli import console, main
from ot_lens.errors import OtLensError
from ot_lens.explorer.runs import OpenRun
from ot_lens.localization import as_methods
from ot_lens.prompts import load_prompts
from ot_lens.study import RunFolder
from ot_lens.study.preparation import check_choices, import_extensions
from tests.trust import hostile_cases as cases
from tests.trust import hostile_readers as readers
from tests.trust.hostile_readers import Files, Reader

EXTREMES = (0, -1, 3, 10**9, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 1e-320)


class BeginError(OtLensError):
    """Raised where a study would begin."""


class RefusedError(OtLensError):
    """Raised for a command that ended with exit code 2 and one line."""


def begin(config, out, *, resume, **_) -> None:
    """What `run_study` does before it loads a model."""
    import_extensions(config, allow_code=False)
    as_methods(config.method_entries)
    check_choices(config)
    load_prompts(config.prompts, seed=config.seed, sample=config.sample, root=config.prompts_root)
    RunFolder.existing(Path(out), config, resume=resume)
    raise BeginError("would begin here.")


def served(folder, *_, **__) -> None:
    """What `explore` reads before it listens."""
    run = OpenRun(folder)
    list(run.map_folders), run.activations, run.config, run.texts


def command_readers(out: Path) -> list[Reader]:
    """Commands as readers of the files that they are given; what they write goes to one folder."""
    console.err, console.out = Console(stderr=True, width=100), Console(width=100)
    ot_lens.study.run_study, ot_lens.explorer.explore = begin, served
    files = readers.run_folder()
    manifest = files["manifest.json"]
    config = json.loads(manifest)["config"]
    run = {f"run/{name}": content for name, content in files.items() if not name.startswith("tables/")}
    same = {"same.yaml": yaml.safe_dump(config).encode(), **run}
    model = {f"model/{name}": content for name, content in readers.model_folder().items()}
    words = "model/tokenizer_config.json"
    model[words] = cases.as_json(json.loads(model[words]) | {"ot_lens": {"variant": "multi"}})
    study = {"study.yaml": yaml.safe_dump({"methods": ["mean_shift"], "seed": 3}).encode()}
    own = {"own.yaml": b"prompts: prompts.json", "prompts.json": cases.as_json(readers.DOCUMENT)}
    figures = ("figures", "run", "--out", str(out / "figures"), "--format", "svg")
    evaluate = ("organism", "evaluate", "--variant", "./model", "--n", "2")
    found = [
        _reader("run", ("run", "study.yaml", "--out", str(out / "new")), study, "study.yaml"),
        _reader("run prompts", ("run", "own.yaml", "--out", str(out / "new")), own, "prompts.json"),
        _reader("resume", ("run", "same.yaml", "--out", "run", "--resume"), same, "run/manifest.json"),
        _reader("explore", ("explore", "run", "--no-browser"), run, "run/manifest.json"),
        _reader("figures", figures, run, "run/manifest.json"),
        _reader("against", (*figures, "--against", "run"), run, "run/activations/train/index.json"),
        _reader(
            "estimate", ("study", "paper", "--model", "./model", "--estimate"), model, "model/config.json"
        ),
        _reader("evaluate", evaluate, model, "model/config.json", words),
    ]
    for name, table in readers.tables().items():  # drawing takes a second a figure: one table per run
        parts = ("plane", "plane_ellipses") if name == "plane" else (name,)
        tables = {f"run/tables/{part}.parquet": files[f"tables/{part}.parquet"] for part in parts}
        target = f"run/tables/{name}.parquet"
        if name != "plane_ellipses":
            drawn = {"run/manifest.json": manifest, **tables}
            found.append(_reader(f"figures {name}", figures, drawn, target, table=table))
    return found


def _reader(
    name: str, arguments: tuple[str, ...], files: Files, *targets: str, table: pd.DataFrame | None = None
) -> Reader:
    structures = None if table is None else _senseless(targets[0], table)
    return Reader(name, files, _ends_in_one_line(arguments), structures, targets, structured=0.8, kinds=False)


def _ends_in_one_line(arguments: tuple[str, ...]) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        with chdir(folder):
            code, said = given(arguments)
        lines = [line for line in said.splitlines() if line.strip()]
        if code not in (0, 2) or "Traceback" in said or (code == 2 and len(lines) != 1):
            raise AssertionError(f"{' '.join(arguments)}: exit code {code}: {said[-400:]}")
        if code == 2 and "would begin here" not in said:
            raise RefusedError(said)

    return read


def given(arguments: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    said, sys.argv = io.StringIO(), ["ot-lens", *arguments]
    console.err.file, console.out.file = said, io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def _senseless(name: str, table: pd.DataFrame) -> st.SearchStrategy:
    """A whole table, with types as they should be, whose rows make no sense."""

    def altered(seed: int) -> Files:
        draw, rows = random.Random(seed), table
        for _ in range(draw.randint(1, 3)):
            rows = _alter(rows, draw)
        return {name: readers.parquet_of(rows)}

    return st.integers(0, 2**32).map(altered)


def _alter(rows: pd.DataFrame, draw: random.Random) -> pd.DataFrame:
    name, kind = draw.choice(list(rows.columns)), draw.randrange(4)
    if kind == 0:
        return rows.sample(n=min(len(rows), draw.choice((0, 1, 2, 7))), random_state=draw.randrange(99))
    if kind == 1:
        return pd.concat([rows, rows.head(3)], ignore_index=True)
    if kind == 2:
        return rows.drop(columns=name) if len(rows.columns) > 1 else rows
    numeric = pd.api.types.is_numeric_dtype(rows[name])
    rows = rows.astype({name: "float64"}) if numeric else rows.copy()
    rows.loc[rows.index[:: draw.choice((1, 2, 5))], name] = draw.choice(EXTREMES if numeric else cases.TEXTS)
    return rows
