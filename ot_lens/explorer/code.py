"""Python code that makes a figure; content of a run appears in it only as literals."""

from collections.abc import Sequence

from ot_lens.explorer.runs import OpenRun, split_key
from ot_lens.explorer.state import State

SAVE = 'plots.save(figure, Path("{name}"), ["png", "svg"], style="wide")'


def program(run: OpenRun, name: str, imports: Sequence[str], body: Sequence[str]) -> str:
    """Imports, the run folder, a body that defines `figure`, and the line that saves it."""
    head = ["from pathlib import Path", "", *imports, "", f"run = Path({str(run.path)!r})"]
    return "\n".join([*head, *body, SAVE.format(name=name)]) + "\n"


def table(name: str) -> str:
    """A line that reads a table."""
    return f'{name} = pd.read_parquet(run / "tables" / "{name}.parquet")'


def method_mask(key: str) -> str:
    """An expression that selects the rows of a method and rank in the table `localization`."""
    method, k = split_key(key)
    mask = f'localization["method"].eq({method!r})'
    return f'({mask} & localization["k"].eq({k}).fillna(False))' if k is not None else mask


def sweep_lines(run: OpenRun, state: State, keys: Sequence[str] | None) -> list[str]:
    """Lines that reduce the table to the state's settings and to some methods."""
    lines = [table("localization"), 'unedited = localization["method"].eq("none")']
    settings = sweep_settings(run, state)
    masks = [f'localization["{name}"].eq({value!r})' for name, value in settings.items()]
    if keys is not None:
        masks.append(f"({' | '.join(map(method_mask, keys))})" if keys else "False")
    if masks:
        lines.append(f"localization = localization[unedited | ({' & '.join(masks)})]")
    return lines


def sweep_settings(run: OpenRun, state: State) -> dict[str, str | float]:
    """Strength and token scope of the state, if the sweep holds these and others."""
    sweep = run.tables.get("localization")
    if sweep is None:
        return {}
    acting = sweep[sweep["method"] != "none"] if "method" in sweep else sweep
    wanted: dict[str, str | float] = {"tokens": state.tokens, "strength": state.strength}
    held = {name: set(acting[name].dropna()) for name in wanted if name in acting}
    return {name: wanted[name] for name, known in held.items() if len(known) > 1 and wanted[name] in known}
