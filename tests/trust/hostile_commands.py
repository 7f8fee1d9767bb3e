"""The command line on hostile files, in one process: exit code 2 and one line, or 0; never a traceback.

python -m tests.trust.hostile_commands --cases 40 [--seed 0]
"""

import argparse
import io
import json
import random
import shutil
import sys
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import yaml
from rich.console import Console

import ot_lens.study
from ot_lens.cli import console, main
from ot_lens.errors import OtLensError
from ot_lens.localization import as_methods
from ot_lens.prompts import load_prompts
from ot_lens.study import RunFolder
from ot_lens.study.checks import check_choices
from ot_lens.study.extensions import import_extensions
from tests.trust import hostile_cases as cases
from tests.trust import hostile_readers as readers
from tests.trust.hostile_oracle import Tally, Watch, alarms, judged, limit_memory


class BeginError(OtLensError):
    """Raised where a study would begin."""


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
    from ot_lens.explorer.runs import OpenRun

    run = OpenRun(folder)
    list(run.map_folders), run.activations, run.config, run.texts


def commands(place: Path) -> list[tuple[str, tuple[str, ...]]]:
    """A file under the sandbox, and the command that reads it."""
    run, out = str(place / "run"), str(place / "out")
    drawn = ("figures", run, "--out", out, "--format", "svg")
    tables = [
        (f"{name}/tables/{name}.parquet", ("figures", str(place / name), "--out", out, "--format", "svg"))
        for name in readers.tables()
        if name != "plane_ellipses"
    ]
    return [
        ("study.yaml", ("run", str(place / "study.yaml"), "--out", str(place / "new"))),
        ("prompts.json", ("run", str(place / "own.yaml"), "--out", str(place / "new"))),
        ("run/manifest.json", ("run", str(place / "same.yaml"), "--out", run, "--resume")),
        ("run/manifest.json", ("explore", run, "--no-browser")),
        ("run/manifest.json", drawn),
        *tables,
        ("run/activations/train/index.json", ("figures", run, "--against", run, "--out", out)),
        ("model/config.json", ("study", "paper", "--model", str(place / "model"), "--estimate")),
        (
            "model/tokenizer_config.json",
            ("organism", "evaluate", "--variant", str(place / "model"), "--n", "2"),
        ),
        ("model/config.json", ("organism", "evaluate", "--variant", str(place / "model"), "--n", "2")),
    ]


def lay_out(place: Path) -> None:
    """Everything the commands read, valid."""
    for name, content in readers.run_folder().items():
        path = place / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    # Drawing takes a second a figure: one run for each table, and one without.
    for name in readers.tables():
        (place / name / "tables").mkdir(parents=True)
        shutil.copy(place / "run/manifest.json", place / name)
        shutil.copy(place / f"run/tables/{name}.parquet", place / name / "tables")
    shutil.copy(place / "plane_ellipses/tables/plane_ellipses.parquet", place / "plane/tables")
    shutil.rmtree(place / "run/tables")
    (place / "model").mkdir()
    for name, content in readers.model_folder().items():
        (place / "model" / name).write_bytes(content)
    (place / "study.yaml").write_text(yaml.safe_dump({"methods": ["mean_shift"], "seed": 3}))
    (place / "prompts.json").write_bytes(cases.as_json(readers.DOCUMENT))
    (place / "own.yaml").write_text(yaml.safe_dump({"prompts": str(place / "prompts.json")}))
    config = json.loads((place / "run/manifest.json").read_text())["config"]
    (place / "same.yaml").write_text(yaml.safe_dump(config))


EXTREMES = (0, -1, 3, 10**9, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 1e-320)
WORDS = (
    "",
    "nan",
    "none",
    "harmful",
    "pca_ot",
    "$x^{",
    "\\frac{",
    "<b>",
    "all",
    "0,1",
    "x" * 500,
    "é",
    "\U0001f600",
)


def altered_table(content: bytes, draw: random.Random) -> bytes:
    """A whole table, with types as they should be, whose rows make no sense."""
    table = pd.read_parquet(io.BytesIO(content))
    for _ in range(draw.randint(1, 3)):
        name = draw.choice(list(table.columns))
        kind = draw.randrange(4)
        if kind == 0:
            table = table.sample(
                n=min(len(table), draw.choice((0, 1, 2, 7))), random_state=draw.randrange(99)
            )
        elif kind == 1:
            table = pd.concat([table, table.head(3)], ignore_index=True)
        elif kind == 2:
            table = table.drop(columns=name) if len(table.columns) > 1 else table
        elif pd.api.types.is_numeric_dtype(table[name]):
            table[name] = table[name].astype("float64")
            table.loc[table.index[:: draw.choice((1, 2, 5))], name] = draw.choice(EXTREMES)
        else:
            table.loc[table.index[:: draw.choice((1, 2, 5))], name] = draw.choice(WORDS)
    held = io.BytesIO()
    table.to_parquet(held, index=False)
    return held.getvalue()


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


def run_commands(place: Path, n: int, first: int) -> dict:
    """n commands, each on one hostile file."""
    watch, tally, refused = Watch(), Tally(), 0
    console.err, console.out = Console(stderr=True, width=100), Console(width=100)
    ot_lens.study.run_study, ot_lens.explorer.explore = begin, served
    asked = commands(place)
    for _, arguments in asked:
        given(arguments)
    limit_memory()
    watch.allowed = (place / "out", place / "new", Path(tempfile.gettempdir()))
    for i in range(n):
        target, arguments = asked[i % len(asked)]
        path, draw = place / target, random.Random(f"command:{first}:{i}")
        whole = path.read_bytes()
        whole_tables = path.suffix == ".parquet" and draw.random() < 0.8
        path.write_bytes(altered_table(whole, draw) if whole_tables else cases.mutated(whole, [whole], draw))
        found: list[tuple[int, str]] = []
        _, fault = judged(lambda: found.append(given(arguments)), watch, place / "canary")  # noqa: B023
        path.write_bytes(whole)
        shutil.rmtree(place / "out", ignore_errors=True)
        code, said = found[0] if found else (None, "")
        lines = [line for line in said.splitlines() if line.strip()]
        if fault is None and (code not in (0, 2) or "Traceback" in said or (code == 2 and len(lines) != 1)):
            fault = f"exit code {code}: {said[-400:]}"
        if fault is not None:
            tally.fail(f"{' '.join(arguments)} of {target}, case {i}", fault)
        refused += code == 2 and "would begin here" not in said
    return {"commands": n, "refused": refused, "faults": tally.failures}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    warnings.simplefilter("ignore")
    import ot_lens.explorer

    with tempfile.TemporaryDirectory() as folder, alarms():
        lay_out(Path(folder))
        print(json.dumps(run_commands(Path(folder), wanted.cases, wanted.seed)))
