"""What is printed about a finished run."""

from typing import TYPE_CHECKING

from ot_lens.cli.console import number, out, say

if TYPE_CHECKING:
    import pandas as pd

    from ot_lens.study import StudyResult


def print_result(result: "StudyResult") -> None:
    """Print the table and the findings of a run, and where its files are."""
    measured = result.tables["localization"]
    if "refusal_rate" in set(measured["measure"]):
        _print_table(measured)
    if "paper" in result.tables:
        _print_paper(result.tables["paper"])
    for sentence in result.summary:
        out.print(f"- {sentence}", markup=False, highlight=False)
    say(f"tables, figures and report: {result.path}")
    say(f"open {result.report}")
    say(f"explore it: ot-lens explore {result.path}")


def _print_table(measured: "pd.DataFrame") -> None:
    from rich.table import Table

    from ot_lens.tables import ALL, LISTED, SEARCHED, UNEDITED, baseline_of, best_singles, effects, select
    from ot_lens.transport import method_label

    edits = effects(measured)
    table = Table(title="Held-out prompts: best single layers, all layers, searched and listed sets")
    for column in ("method", "layers", "refuses %", "correct %", "KL", "harmless %"):
        table.add_column(column, justify="left" if column in ("method", "layers") else "right", no_wrap=True)
    table.caption = (
        "refuses: harmful prompts refused, with 95 % Wilson interval; correct: those answered correctly; "
        "KL: next-token divergence on harmless prompts, nats; harmless: those answered correctly"
    )
    groups = (
        baseline_of(edits),
        best_singles(measured),
        select(edits, set=(ALL, SEARCHED, LISTED)),
    )
    for rows in groups:
        for _, row in rows.iterrows():
            name = "unedited" if row["set"] == UNEDITED else method_label(row["method"], row["k"])
            table.add_row(name, row["layers"] or "-", *_cells(row))
        table.add_section()
    out.print(table)


def _print_paper(measured: "pd.DataFrame") -> None:
    """The rows with a number; all rows, with n and judge, are in the files."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ot_lens.paper_study.table import CAPTION, printable

    known = measured[["asr", "perplexity", "paper_asr", "paper_perplexity"]].notna().any(axis=1)
    rows = printable(measured[known]).drop(columns=["n", "judge", "of"])
    rows["model"] = rows["model"].str.rpartition("/")[2].str.removesuffix("-hf")
    table = Table(title="Next to arXiv 2603.04355", caption=CAPTION, box=SIMPLE_HEAD, padding=0)
    for column in rows.columns:
        table.add_column(column, justify="left" if column in ("model", "method", "layers") else "right")
    for row in rows.itertuples(index=False):
        table.add_row(*row)
    out.print(table)
    say("every model of the paper, with n and judge: tables/paper.parquet, paper.md and paper.tex")


def _cells(row: "pd.Series") -> tuple[str, str, str, str]:
    return (
        f"{100 * row['refusal']:.1f} ({100 * row['low']:.0f}-{100 * row['high']:.0f})",
        number(100 * row["correct"], ".1f", "-"),
        number(row["kl"], ".4f", "-"),
        number(100 * row["harmless_correct"], ".1f", "-"),
    )
