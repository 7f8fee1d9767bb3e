"""What is printed about a finished run."""

from typing import TYPE_CHECKING

from ot_lens.cli.console import number, out, print_table, say
from ot_lens.progress import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ot_lens.study import Cost, StudyResult


def print_result(result: "StudyResult") -> None:
    """Print the table and the findings of a run, and where its files are."""
    measured = result.tables["localization"]
    if "refusal_rate" in set(measured["measure"]):
        _print_table(measured)
    if "paper" in result.tables:
        _print_paper(result.tables["paper"])
    if "claims" in result.tables:
        _print_claims(result.tables["claims"])
    for sentence in result.summary:
        out.print(f"- {sentence}", markup=False, highlight=False)
    say(f"tables, figures and report: {result.path}")
    say(f"open {result.report}")
    say(f"explore it: ot-lens explore {result.path}")


def print_estimate(costs: "Sequence[Cost]", processes: int = 1) -> None:
    """Print what each stage of a study will take in one process, and all of them in several."""
    rows = [
        (cost.stage, f"{cost.count:,}", cost.unit, _price(cost.price), duration(cost.seconds))
        for cost in costs
    ]
    totals = [("total", "", "", "", duration(sum(cost.seconds for cost in costs)))]
    if processes > 1:
        least = duration(sum(cost.seconds_of(processes) for cost in costs))
        totals.append((f"in {processes} processes, at least", "", "", "", least))
    print_table(
        ("stage", "n", "of", "each", "time"),
        rows,
        totals,
        title="What each stage will take",
        caption="measured now, in this process, on a sample of each stage: few prompts, edits and layers",
    )


def _price(seconds: float) -> str:
    return (
        f"{1000 * seconds:.2g} ms"
        if seconds < 0.1
        else f"{seconds:.2g} s"
        if seconds < 10
        else duration(seconds)
    )


def _print_table(measured: "pd.DataFrame") -> None:
    from ot_lens.tables import ALL, LISTED, SEARCHED, baseline_of, best_singles, effects, select

    edits = effects(measured)
    groups = baseline_of(edits), best_singles(measured), select(edits, set=(ALL, SEARCHED, LISTED))
    print_table(
        # Units on a line of their own: the table fits into 80 columns.
        ("method", "layers", "refuses\n%", "coherent\n%", "correct\n%", "KL", "harmless\n%"),
        *([_cells(row) for _, row in rows.iterrows()] for rows in groups),
        title="Held-out prompts: best single layers, all layers, searched and listed sets",
        caption="refuses: harmful prompts refused, with 95 % Wilson interval; coherent: those answered, "
        "neither repetitive nor far less likely than the model's own answers; correct: those answered "
        "correctly; KL: next-token divergence on harmless prompts, nats; harmless: those answered correctly",
    )


def _cells(row: "pd.Series") -> tuple[str, ...]:
    from ot_lens.tables import UNEDITED
    from ot_lens.transport import method_label

    return (
        "unedited" if row["set"] == UNEDITED else method_label(row["method"], row["k"]),
        row["layers"] or "-",
        f"{100 * row['refusal']:.0f} ({100 * row['low']:.0f}-{100 * row['high']:.0f})",
        number(100 * row["coherent"], ".0f", "-"),
        number(100 * row["correct"], ".0f", "-"),
        number(row["kl"], ".4f", "-"),
        number(100 * row["harmless_correct"], ".0f", "-"),
    )


def _print_paper(measured: "pd.DataFrame") -> None:
    """The rows with a number; all rows, with n and judge, are in the files."""
    from ot_lens.paper_study.table import CAPTION, printable

    known = measured[["asr", "perplexity", "paper_asr", "paper_perplexity"]].notna().any(axis=1)
    rows = printable(measured[known]).drop(columns=["n", "judge", "of"])
    rows["model"] = rows["model"].str.rpartition("/")[2].str.removesuffix("-hf")
    print_table(
        rows.columns.to_list(),
        rows.itertuples(index=False),
        title="Next to arXiv 2603.04355",
        caption=CAPTION,
    )
    say("every model of the paper, with n and judge: tables/paper.parquet, paper.md and paper.tex")


def _print_claims(measured: "pd.DataFrame") -> None:
    """How many comparisons of each claim have each verdict; the comparisons are in the files."""
    counts = measured.groupby(["claim", "verdict"], sort=False).size().unstack(fill_value=0)
    verdicts = [name for name in ("supported", "not supported", "cannot tell") if name in counts]
    print_table(
        ("claim", *verdicts),
        [(str(claim), *(str(row[name]) for name in verdicts)) for claim, row in counts.iterrows()],
        title="Claims of arXiv 2603.04355: comparisons by verdict",
        caption="paired differences over the same prompts; p-values corrected within each claim (Holm)",
    )
    say("every comparison, with its interval: tables/claims.parquet, claims.md and claims.tex")
