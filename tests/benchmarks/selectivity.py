"""What a constraint or a gate buys: the price of each form of a map at the refusal score that it reaches.

`python tests/benchmarks/selectivity.py MODEL` prints a table in Markdown. The plain map is weakened to the
strength at which it reaches the same score, linear between measured strengths, and measured there; a share
is the KL on harmless prompts over its KL.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd

import ot_lens as otl
from ot_lens.execution import Runner, as_runner
from ot_lens.localization.candidates import Candidate, candidates
from ot_lens.localization.measure import measure_sweep, outcomes_in
from ot_lens.localization.methods import MethodSpec, as_methods, fit_maps
from ot_lens.localization.settings import sweep_settings
from ot_lens.plots import save
from ot_lens.plots import selectivity as drawn
from ot_lens.plots.gallery import entry_named
from ot_lens.statistics import estimates
from ot_lens.tables import SINGLE, UNEDITED, join
from ot_lens.transport import method_label

PLAIN: tuple[dict[str, Any], ...] = (
    {"name": "mean_shift"},
    {"name": "pca_ot", "k": 2},
    {"name": "gaussian_ot"},
)
FORMS: dict[str, dict[str, str]] = {
    "null space": {"within": "null_space"},
    "hard gate": {"gate": "threshold"},
    "both": {"within": "null_space", "gate": "threshold"},
}
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
DRAWN = (0.5, 0.75, 1.0)


class Sweep:
    """A model whose edits of single layers are measured prompt by prompt."""

    def __init__(self, name: str, sample: tuple[int, int, int], layers: Sequence[int], seed: int = 0) -> None:
        model = otl.load_model(name)
        self.prompts = otl.load_prompts(name.partition(":")[0], sample=sample, seed=seed)
        self.runner: Runner = as_runner(model)
        self.settings = sweep_settings(
            model, ("refusal_score", "kl"), layers=layers, tokens="last", outcomes=True, seed=seed
        )
        acts = otl.capture(model, self.prompts.train, layers=layers)
        # each plain map and its forms
        self.methods = [as_methods([{**plain, **form} for form in ({}, *FORMS.values())]) for plain in PLAIN]
        self.maps = fit_maps(acts, [*chain(*self.methods)], layers=tuple(layers), position=-1)

    def measure(
        self, methods: Sequence[MethodSpec], strengths: Sequence[float], layers: Sequence[int] | None = None
    ) -> tuple[list[Candidate], pd.DataFrame]:
        """Edits of single layers and their rows."""
        maps = {
            method: {n: own for n, own in self.maps[method].items() if layers is None or n in layers}
            for method in methods
        }
        planned = candidates(maps, self.settings, [SINGLE], strengths)
        tables = measure_sweep(self.runner, self.prompts.test, planned, self.settings)
        return planned, join(list(tables.values()))

    def by_prompt(self, key: str, quantity: str, prompts: str) -> np.ndarray:
        """A number of each prompt under an edit that was measured."""
        rows = outcomes_in(self.runner.cache, [key])
        return rows.loc[rows["prompts"] == prompts, quantity].to_numpy(float)

    def score(self, key: str) -> float:
        """Mean refusal score of the harmful prompts."""
        return float(self.by_prompt(key, "refusal_score", "harmful").mean())


def strength_at(sweep: Sweep, plain: Sequence[Candidate], score: float) -> float:
    """The strength at which the plain map reaches a score, linear between those that were measured."""
    strengths = [0.0, *(c.strength for c in plain)]
    scores = [sweep.score(UNEDITED), *(sweep.score(c.key) for c in plain)]
    above = next((i for i, s in enumerate(scores) if s <= score), len(scores) - 1)
    low, high = max(0, above - 1), above
    share = 1.0 if scores[high] == scores[low] else (scores[low] - score) / (scores[low] - scores[high])
    return float(np.clip(strengths[low] + share * (strengths[high] - strengths[low]), 0.01, 1.0))


def rows_of(sweep: Sweep) -> Iterator[list[str]]:
    """A row of the table for each layer and method."""
    for layer in sweep.settings.layers:
        for plain, (own, *forms) in zip(PLAIN, sweep.methods, strict=True):
            at_strengths, _ = sweep.measure([own], STRENGTHS, [layer])
            cells = [str(layer), method_label(own.name, plain.get("k")), _cell(sweep, at_strengths[-1].key)]
            for changed in sweep.measure(forms, [1.0], [layer])[0]:
                strength = strength_at(sweep, at_strengths, sweep.score(changed.key))
                ((weakened,), _) = sweep.measure([own], [strength], [layer])
                kl = [sweep.by_prompt(c.key, "kl", "harmless") for c in (changed, weakened)]
                share = estimates.ratio(kl[0], kl[1], seed=0)
                gap = abs(sweep.score(weakened.key) - sweep.score(changed.key))
                interval = f"{share.value:.2f} ({max(0.0, share.low):.2f}-{share.high:.2f})"
                cells.append(f"{_cell(sweep, changed.key)}, {interval}{' *' if gap > 0.05 else ''}")
            yield cells


def _cell(sweep: Sweep, key: str) -> str:
    return f"{sweep.score(key):.1f}, {sweep.by_prompt(key, 'kl', 'harmless').mean():.2f}"


def main() -> None:
    """Print the table, and draw the figure if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--sample", type=int, nargs=3, default=(128, 1, 64))
    parser.add_argument("--layers", type=int, nargs="+", default=(18, 20, 22, 26, 29))
    parser.add_argument(
        "--out",
        type=Path,
        help="draw the figure `selectivity` and its caption as these files, without suffix",
    )
    options = parser.parse_args()
    sweep = Sweep(options.model, tuple(options.sample), tuple(options.layers))
    if options.out:
        _, table = sweep.measure(list(sweep.maps), DRAWN)
        save(drawn(table), options.out, ["png"])
        about = f"Model {options.model}, seed 0, ot_lens {otl.__version__}."
        options.out.with_suffix(".txt").write_text(f"{entry_named('selectivity').caption(table)} {about}\n")
    print("| layer | method | plain: score, KL |", " | ".join(f"{f}: score, KL, share" for f in FORMS), "|")
    print("|---" * (3 + len(FORMS)) + "|")
    for cells in rows_of(sweep):
        print("|", " | ".join(cells), "|", flush=True)
    unedited = estimates.mean(sweep.by_prompt(UNEDITED, "refusal_score", "harmful"), seed=0)
    print(f"unedited: score {unedited.value:.1f} ({unedited.low:.1f} to {unedited.high:.1f})")
    print("*: the plain map is more than 0.05 nats off, as where it does not reach the score")


if __name__ == "__main__":
    main()
