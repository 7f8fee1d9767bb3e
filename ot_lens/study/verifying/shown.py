"""Captions, figures and the report compared with those made again from the stored tables."""

import tempfile
from filecmp import cmpfiles
from pathlib import Path

import pandas as pd

from ot_lens.errors import TableError
from ot_lens.study.drawing import about, drawing_options, write_page
from ot_lens.study.folder import RunFolder
from ot_lens.study.manifest import manifest_hash, versions
from ot_lens.study.verifying.comparing import Check, Checks, listed
from ot_lens.study.verifying.evidence import Evidence

# Packages whose version changes the bytes of a figure or of the report.
DRAWING = ("ot_lens", "matplotlib", "plotly", "pandas", "numpy")


def shown(run: Evidence, checks: Checks, *, figures: bool) -> None:
    """Captions and the report; with `figures` every figure as well, which takes seconds each."""
    with run.stage("captions", None):
        checks.make("figures", "captions rewritten", _check_captions, run)
    if figures:
        checks.make("figures", "drawn again", _check_figures, run)
    with run.stage("report", None):
        checks.make("report.html", "written again", _check_report, run)


def _tables(run: Evidence) -> dict[str, pd.DataFrame]:
    return {name: run.table(name) for name in run.folder.table_names} | {"localization": run.sweep}


def _check_captions(run: Evidence) -> Check:
    """The caption of every figure that can be drawn, which has the numbers that it shows."""
    from ot_lens.plots.gallery import GALLERY, inputs

    tables, wrong, count = _tables(run), [], 0
    for entry in GALLERY:
        path = run.folder.path / "figures" / f"{entry.name}.txt"
        try:
            needed, options = inputs(entry, tables)
            entry.describe(*needed, **options)
            caption = f"{entry.caption(*needed, **options)} {about(run.folder)}".strip() + "\n"
        except TableError:
            continue
        if entry.name == "run_cosines" and not path.is_file():
            continue  # the comparison with another run is drawn on request
        count += 1
        if not path.is_file():
            wrong.append(f"{path.name} is missing")
        elif path.read_text("utf-8") != caption:
            wrong.append(f"{path.name} is different")
    return Check.exact("figures", "captions rewritten", wrong, count)


def _check_figures(run: Evidence) -> Check:
    """Every figure on paper, byte by byte, if the same versions are installed."""
    from ot_lens.plots import draw_all
    from ot_lens.plots.gallery import FORMATS

    how, folder, other = "drawn again", run.folder.path / "figures", _other_versions(run)
    if other:
        return Check.unchecked("figures", how, other)
    formats = [suffix for suffix in FORMATS if any(folder.glob(f"*.{suffix}"))]
    with tempfile.TemporaryDirectory() as temporary:
        options = drawing_options(run.folder, run.config.figure_style, run.stage)
        drawn = draw_all(_tables(run), Path(temporary), formats, **options)
        names = [path.name for path in drawn]
        _, different, absent = cmpfiles(folder, temporary, names, shallow=False)
    wrong = sorted(different + absent)
    note = [f"{listed(wrong)}: altered, or drawn again in another style"] if wrong else []
    return Check.exact("figures", how, note, len(names))


def _check_report(run: Evidence) -> Check:
    """The report written again with the manifest as it was before the run had finished."""
    how, path, other = "written again", run.folder.path / "report.html", _other_versions(run)
    if not path.is_file():
        return Check.missing("report.html", how, "no such file")
    if other or not {"files", "sha256"} <= set(run.folder.manifest):
        return Check.unchecked("report.html", how, other or "its manifest has no hashes")
    manifest, pins = run.folder.manifest | {"finished": False}, run.folder.manifest["files"]
    del manifest["files"]
    before = RunFolder(run.folder.path, manifest | {"sha256": manifest_hash(manifest)})
    tables = {name: table for name, table in _tables(run).items() if f"tables/{name}.parquet" in pins}
    with tempfile.TemporaryDirectory() as temporary:
        again = write_page(before, tables, Path(temporary) / "report.html")
        ours, theirs = (page.read_text("utf-8").splitlines() for page in (again, path))
    return Check.exact(
        "report.html", how, [] if ours == theirs else [_first_difference(ours, theirs)], len(ours)
    )


def _first_difference(ours: list[str], theirs: list[str]) -> str:
    pairs = zip(ours, theirs, strict=False)
    number = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), min(len(ours), len(theirs)) + 1)
    return f"line {number} does not follow from the tables"


def _other_versions(run: Evidence) -> str:
    then, now = run.folder.manifest.get("versions", {}), versions()
    other = [f"{name} {then.get(name)}" for name in DRAWING if then.get(name) != now[name]]
    return f"drawn by {listed(other)}, which writes other bytes" if other else ""
