"""Python code that makes a figure; content of a run appears in it only as literals."""

from collections.abc import Sequence

from ot_lens.explorer.runs import OpenRun, split_key
from ot_lens.explorer.state import State
from ot_lens.tables import edits_of

SWEEP_IMPORTS = (
    "import pandas as pd",
    "from ot_lens import plots",
    "from ot_lens.tables import with_baseline",
)
SAVE = 'plots.save(figure, Path("{name}"), ["png", "svg"], style="wide")'


def program(run: OpenRun, name: str, imports: Sequence[str], body: Sequence[str]) -> str:
    """Imports, the run folder, a body that defines `figure`, and the line that saves it."""
    head = ["from pathlib import Path", "", *imports, "", f"run = Path({str(run.path)!r})"]
    return "\n".join([*head, *body, SAVE.format(name=name)]) + "\n"


def table(name: str) -> str:
    """A line that reads a table."""
    return f'{name} = pd.read_parquet(run / "tables" / "{name}.parquet")'


def sweep_lines(
    run: OpenRun, state: State, keys: Sequence[str] | None, layer: int | None = None
) -> list[str]:
    """Lines that reduce the table to the state's settings, to some methods and to a layer."""
    arguments = [] if keys is None else [f"methods={list(map(split_key, keys))!r}"]
    arguments += [f"{name}={value!r}" for name, value in sweep_settings(run, state).items()]
    arguments += [] if layer is None else [f"layer={layer}"]
    select = f"localization = with_baseline(localization, {', '.join(arguments)})"
    return [table("localization"), *([select] if arguments else [])]


def sweep_settings(run: OpenRun, state: State) -> dict[str, str | float]:
    """Strength and token scope of the state, if the sweep holds these and others."""
    sweep = run.tables.get("localization")
    if sweep is None:
        return {}
    edits = edits_of(sweep) if "method" in sweep else sweep
    wanted: dict[str, str | float] = {"tokens": state.tokens, "strength": state.strength}
    held = {name: set(edits[name].dropna()) for name in wanted if name in edits}
    return {name: wanted[name] for name, known in held.items() if len(known) > 1 and wanted[name] in known}
