"""Captions, figures and the report compared with those made again from the stored tables."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ot_lens.errors import TableError
from ot_lens.study.drawing import about
from ot_lens.study.findings import summarize
from ot_lens.study.pins import manifest_hash, versions
from ot_lens.study.verifying.check import Check, Checks, exact, listed, missing, unchecked
from ot_lens.study.verifying.evidence import Evidence

if TYPE_CHECKING:
    from ot_lens.plots.gallery import Entry

# Formats that a run draws; others are drawn on request.
DRAWN_BY_RUN = ("png", "pdf")
# Packages whose version changes the bytes of a figure or of the report.
DRAWING = ("ot_lens", "matplotlib", "plotly", "pandas", "numpy")


def shown(run: Evidence, checks: Checks, *, figures: bool) -> None:
    """Captions and the report; with `figures` every figure as well, which takes seconds each."""
    with checks.of("figures", "captions rewritten"):
        checks.add(_captions(run))
    if figures:
        with checks.of("figures", "drawn again"):
            checks.add(_figures(run))
    with checks.of("report.html", "written again"):
        checks.add(_report(run))


def _tables(run: Evidence) -> dict[str, pd.DataFrame]:
    _ = run.sweep
    return {name: run.table(name) for name in run.folder.table_names}


def _captions(run: Evidence) -> Check:
    """The caption of every figure, which has the numbers that it shows."""
    from ot_lens.plots.gallery import GALLERY, inputs

    tables, folder = _tables(run), run.folder.path / "figures"
    wrong, count = [], 0
    for entry in GALLERY:
        path = folder / f"{entry.name}.txt"
        try:
            needed, options = inputs(entry, tables)
            caption = f"{entry.caption(*needed, **options)} {about(run.folder)}".strip() + "\n"
        except TableError:
            continue
        if not path.is_file() and _undrawable(entry, needed, options):
            continue
        count += 1
        if not path.is_file():
            wrong.append(f"{path.name} is missing")
        elif path.read_text("utf-8") != caption:
            wrong.append(f"{path.name} is different")
    return exact("figures", "captions rewritten", wrong, count)


def _undrawable(entry: "Entry", needed: list[pd.DataFrame], options: dict[str, Any]) -> bool:
    """Whether there is nothing to draw; the comparison with another run is drawn on request."""
    if entry.name == "run_cosines":
        return True
    try:
        entry.draw(*needed, **options)
    except TableError:
        return True
    return False


def _figures(run: Evidence) -> Check:
    """Every figure on paper, byte by byte, if the same versions are installed."""
    from ot_lens.plots import draw_all

    how, folder = "drawn again", run.folder.path / "figures"
    other = _other_versions(run)
    if other:
        return unchecked("figures", how, other)
    formats = [suffix for suffix in ("png", "pdf", "svg") if any(folder.glob(f"*.{suffix}"))]
    with tempfile.TemporaryDirectory() as temporary:
        drawn = draw_all(
            _tables(run), Path(temporary), formats, run.config.figure_style, about=about(run.folder)
        )
        wrong = [
            path.name
            for path in drawn
            if not (folder / path.name).is_file() or (folder / path.name).read_bytes() != path.read_bytes()
        ]
    note = [f"{listed(wrong)}: altered, or drawn again in another style"] if wrong else []
    return exact("figures", how, note, len(drawn))


def _report(run: Evidence) -> Check:
    """The report written again with the manifest as it was before the run had finished."""
    from ot_lens.report import write_report

    how, folder = "written again", run.folder
    path = folder.path / "report.html"
    if not path.is_file():
        return missing("report.html", how, "no such file")
    other = _other_versions(run)
    if other or not {"files", "sha256"} <= set(folder.manifest):
        return unchecked("report.html", how, other or "its manifest has no hashes")
    pins = folder.manifest["files"]
    tables = {n: t for n, t in _tables(run).items() if f"tables/{n}.parquet" in pins}
    manifest = {k: v for k, v in folder.manifest.items() if k != "files"} | {"finished": False}
    manifest["sha256"] = manifest_hash(manifest)
    with tempfile.TemporaryDirectory() as temporary:
        view = _as_first_drawn(folder.path, Path(temporary))
        again = write_report(view, tables, manifest, summarize(tables["localization"]), view / "report.html")
        ours, theirs = (p.read_text("utf-8").splitlines() for p in (again, path))
    wrong = [] if ours == theirs else [_first_difference(ours, theirs)]
    return exact("report.html", how, wrong, len(ours))


def _as_first_drawn(run: Path, copy: Path) -> Path:
    """What the report reads of the folder: the configuration, and the names of the figures."""
    (copy / "figures").mkdir()
    for path in (run / "figures").glob("*"):
        if path.suffix.removeprefix(".") in DRAWN_BY_RUN:
            (copy / "figures" / path.name).touch()
    if (run / "config.yaml").is_file():
        shutil.copy(run / "config.yaml", copy)
    return copy


def _first_difference(ours: list[str], theirs: list[str]) -> str:
    pairs = zip(ours, theirs, strict=False)
    number = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), min(len(ours), len(theirs)) + 1)
    return f"line {number} does not follow from the tables"


def _other_versions(run: Evidence) -> str:
    then, now = run.folder.manifest.get("versions", {}), versions()
    other = [f"{name} {then.get(name)}" for name in DRAWING if then.get(name) != now[name]]
    return f"drawn by {listed(other)}, which writes other bytes" if other else ""
