"""Other tools and ot_lens on one model and the same prompts: what each finds, what it does, what it costs.

`python tests/benchmarks/tools.py MODEL [--sample FIT CHOOSE MEASURE] [--layers STEP]` prints two tables in
Markdown: edits, and numbers that another library computes too. Every layer is chosen on the prompts to choose
with and measured on others; nothing is chosen among the rows.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import ot
import pandas as pd
import torch
from concept_erasure import LeaceFitter
from transformer_lens.tools.analysis import interchange as theirs
from transformer_lens.tools.analysis import logit_readout

import ot_lens as otl
from ot_lens.errors import NoDirectionLeftError
from ot_lens.gaussian import Gaussian
from ot_lens.interventions import Edits
from ot_lens.localization.candidates import Candidate, candidates, edits_at
from ot_lens.localization.comparison import _cell
from ot_lens.localization.measure import measure_sweep
from ot_lens.localization.methods import MethodSpec, as_methods, fit_maps
from ot_lens.localization.settings import sweep_settings
from ot_lens.models import backend, encode
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.tables import LISTED, SINGLE, join, measured

OURS = (
    "mean_shift",
    {"name": "mean_shift", "within": "null_space"},
    {"name": "pca_ot", "k": 2, "within": "null_space"},
    {"name": "gaussian_ot", "within": "null_space"},
)
LEACE, DIRECTION = "concept-erasure: LEACE", "refusal_direction"
SHOWN = (
    ("refusal_rate", "harmful", "share"),
    ("coherent_success_rate", "harmful", "share"),
    ("kl", "harmless", "number"),
)
NEXT_TOKEN = ("refusal_score", "kl")
# Prompts whose logits are compared between libraries.
COMPARED = 8
PAIRED: dict[str, Any] = {
    "positions": "last", "partners": "paired", "classes": ["harmful"], "null_draws": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """A row of the first table: an edit, how it was found, and the processor seconds that this took."""

    name: str
    method: str
    found: str
    edits: Edits
    tokens: str
    seconds: float


@dataclass(frozen=True)
class Same:
    """A row of the second table: one number of two libraries."""

    name: str
    tool: str
    difference: float
    seconds: tuple[float, float]  # theirs, ours


class Subject:
    """A model, its prompts, and the layers to choose from."""

    def __init__(
        self, name: str, sample: tuple[int, int, int], step: int, tokens: int, seed: int = 0
    ) -> None:
        self.name, self.seed = name, seed
        self.model: Any = otl.load_model(name)
        self.prompts: ContrastSet = otl.load_prompts(name.partition(":")[0], sample=sample, seed=seed)
        self.n_layers = backend(self.model).n_layers
        self.layers = tuple(sorted(range(self.n_layers - 1, -1, -step)))
        self.settings = sweep_settings(
            self.model, ("refusal_rate", *NEXT_TOKEN), layers=self.layers, max_new_tokens=tokens, seed=seed
        )
        self.reading = sweep_settings(self.model, NEXT_TOKEN, layers=self.layers, seed=seed)
        self._captured: dict[str, tuple[otl.Activations, float]] = {}

    def captured(self, hook: str, layers: Sequence[int]) -> tuple[otl.Activations, float]:
        """Activations of the prompts to fit on, captured once, and the processor seconds that they took."""
        if hook not in self._captured:
            self._captured[hook] = clocked(
                lambda: otl.capture(self.model, self.prompts.train, layers=layers, hook=hook)
            )
        return self._captured[hook]


def clocked(run: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and the processor seconds that it took."""
    started = time.process_time()
    result = run()
    return result, time.process_time() - started


def best(run: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and the processor seconds of the fastest of three runs."""
    return min((clocked(run) for _ in range(3)), key=lambda result: result[1])


# ------------------------------------------------------------------------------------------------ edits
def chosen_layer(subject: Subject, acts: otl.Activations, entry: Any) -> tuple[Candidate, str]:
    """A method's edit of the layer with the lowest mean refusal score on the prompts to choose with."""
    (spec,) = as_methods([entry])
    maps = fit_maps(acts, [spec], layers=subject.layers, position=-1)
    planned = candidates(maps, subject.reading, [SINGLE], prompts=("harmful",), generates=False)
    tables = measure_sweep(subject.model, subject.prompts.val, planned, subject.reading)
    scores = measured(join(list(tables.values())), "refusal_score", "harmful").set_index("key")["value"]
    best = min(planned, key=lambda candidate: scores[candidate.key])
    return best, f"layer {best.layers[0]}"


def by_choice(subject: Subject, tool: str, entry: Any) -> Edit:
    """A method of the registry at the layer that it chooses."""

    acts, captured = subject.captured("resid_pre", subject.layers)
    (chosen, found), seconds = clocked(lambda: chosen_layer(subject, acts, entry))
    name = f"{tool}: {label(chosen.method)}"
    return Edit(name, chosen.method.label, found, chosen.edits, chosen.tokens, captured + seconds)


def label(spec: MethodSpec) -> str:
    """A method in words."""
    from ot_lens.transport import method_label

    return method_label(spec.name, spec.params.get("k"))


def published_rule(subject: Subject) -> Edit:
    """Extraction, scores and selection of refusal_direction, at the last token."""
    acts, captured = subject.captured("resid_pre", subject.layers)

    def find() -> tuple[otl.Selection, str]:
        scores = otl.score_directions(subject.model, subject.prompts.val, acts)
        try:
            return otl.select_direction(scores, subject.n_layers), ""
        except NoDirectionLeftError:
            loose = {"prune_share": None, "induce_threshold": None, "kl_threshold": None}
            return otl.select_direction(scores, subject.n_layers, **loose), "; its filters leave none"

    (selection, note), seconds = clocked(find)
    edit = otl.fit_directional_ablation(acts.harmful(selection.layer), acts.harmless(selection.layer))
    everywhere = otl.everywhere(edit, range(subject.n_layers))
    found = f"layer {selection.layer}, position {selection.position}{note}"
    return Edit(f"{DIRECTION}: its rule", "rfa", found, everywhere, "all", captured + seconds)


def middle(n_layers: int, *, heretic: bool) -> dict[str, Any]:
    """The middles of the ranges in which heretic and abliterix search."""
    last = n_layers - 1

    def kernel(top: float, peak: float) -> list[float]:
        return [round(number, 4) for number in (top, peak * last, top / 2, (1 + 0.6 * last) / 2)]

    peak = 0.8 if heretic or last >= 20 else 0.7
    return {
        "attention": kernel(1.15, peak),
        "mlp": kernel(0.625 if heretic else 1.15, peak),
        "projected": heretic,
    }


def searched_ranges(subject: Subject, *, heretic: bool) -> Iterator[Edit]:
    """The edits of heretic and abliterix in the middle of the ranges that they search."""
    tool, parameters = ("heretic", "abliterix")[not heretic], middle(subject.n_layers, heretic=heretic)
    last = subject.n_layers - 1
    index = round((0.65 if heretic or last >= 20 else 0.625) * last, 4)

    every = tuple(range(subject.n_layers))
    acts, captured = subject.captured("resid_post", every)
    (plain,) = as_methods([{"name": "weighted_ablation", **parameters}])
    maps, seconds = clocked(lambda: fit_maps(acts, [plain], layers=every, position=-1)[plain])
    for one, norm in ((False, False), (True, False), (False, True)):
        options = {"norm_preserving": norm, **({"direction_index": index} if one else {})}
        (spec,) = as_methods([{"name": "weighted_ablation", **parameters, **options}])
        own = {n: otl.norm_preserving(m) for n, m in maps.items()} if norm else maps
        found = f"direction {index:g}" if one else "each block its own"
        name = f"{tool}: weighted ablation{', norm kept' if norm else ''}"
        edits = edits_at(spec, own, every, subject.n_layers)
        yield Edit(name, spec.label, found, edits, "all", captured + seconds)


def edits_of(subject: Subject) -> Iterator[Edit]:
    """Every edit of the first table."""
    yield published_rule(subject)
    yield by_choice(subject, "concept-erasure", "leace")
    yield from searched_ranges(subject, heretic=True)
    yield from searched_ranges(subject, heretic=False)
    constant = {"name": "weighted_ablation", "attention": 1.15, "mlp": 0.625}
    yield by_choice(subject, "heretic, one weight at all blocks", constant)
    for entry in OURS:
        yield by_choice(subject, "ot_lens", entry)


def measured_all(subject: Subject, planned: Sequence[Candidate]) -> dict[str, pd.DataFrame]:
    """The rows of each edit, and of none, on the prompts to measure with."""
    return measure_sweep(subject.model, subject.prompts.test, planned, subject.settings)


def behaviour(subject: Subject, edits: Sequence[Edit]) -> pd.DataFrame:
    """Refusals, coherent answers and KL on the prompts to measure with, under each edit and under none."""
    planned = {
        prompts: [
            Candidate(
                LISTED, (number,), MethodSpec("rfa", {"row": number}), edit.edits, None, edit.tokens,
                prompts=(prompts,), generates=prompts == "harmful",
            )
            for number, edit in enumerate(edits)
        ]
        for prompts in ("harmful", "harmless")
    }  # fmt: skip
    sweeps = {
        prompts: join(
            list(measure_sweep(subject.model, subject.prompts.test, some, subject.settings).values())
        )
        for prompts, some in planned.items()
    }
    rows = []
    for number, about in ((None, None), *enumerate(edits)):
        row = {"edit": about.name if about else "none", "found": about.found if about else ""}
        for quantity, prompts, _ in SHOWN:
            sweep = sweeps[prompts]
            own = (
                sweep[sweep["set"] == "none"]
                if about is None
                else sweep[sweep["key"] == planned[prompts][number].key]
            )
            (row[quantity],) = measured(own, quantity, prompts).to_dict("records")
        row["seconds"] = about.seconds if about else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------- the same numbers
def of_transformerlens(subject: Subject) -> Iterator[Same]:
    """Ablation by plain hooks, interchange and logit readout on a full bridge."""
    bridge = otl.load_model(subject.name, hooks="full")
    acts = otl.capture(subject.model, subject.prompts.train, layers=[subject.layers[-1]])
    layer = subject.layers[-1]
    edit = otl.fit_directional_ablation(acts.harmful(layer), acts.harmless(layer))
    yield ablation(subject, bridge, edit)
    yield interchanged(subject, bridge)
    r = (acts.harmful(layer).mean(0) - acts.harmless(layer).mean(0)).float()
    their, their_seconds = best(lambda: logit_readout(bridge, r[None], apply_ln=True).values[0])
    our, our_seconds = best(lambda: otl.vector_logits(subject.model, r))
    yield Same(
        "logit readout of the direction", "TransformerLens", gap(their, our), (their_seconds, our_seconds)
    )


def ablation(subject: Subject, bridge: Any, edit: otl.AffineMap) -> Same:
    """Directional ablation at every block, by a bridge's own hooks and by `intervene`."""
    r = edit.V[:, 0].float()
    points = [
        f"blocks.{n}.{name}"
        for n in range(subject.n_layers)
        for name in ("hook_in", "attn.hook_out", "mlp.hook_out")
    ]
    known = [point for point in points if point in bridge.hook_dict]
    batch = of_one_length(subject, "harmful")
    mask = torch.ones_like(batch)

    def project(x: torch.Tensor, hook: Any) -> torch.Tensor:
        return x - (x @ r)[..., None] * r

    @torch.no_grad()
    def their() -> torch.Tensor:
        hooks = [(point, project) for point in known]
        return bridge.run_with_hooks(batch, fwd_hooks=hooks, attention_mask=mask)[:, -1]

    def our() -> torch.Tensor:
        with otl.intervene(subject.model, otl.everywhere(edit, range(subject.n_layers))):
            return backend(subject.model).logits(batch, mask, keep=1)[:, -1]

    (a, first), (b, second) = best(their), best(our)
    return Same(f"directional ablation at {len(known)} sites", "TransformerLens", gap(a, b), (first, second))


def of_one_length(subject: Subject, label: str) -> torch.Tensor:
    """Tokens of some test prompts of a class that have one length, so that no padding is compared."""
    rows = encode(backend(subject.model), getattr(subject.prompts.test, label))
    lengths = [len(row) for row in rows]
    return torch.tensor([row for row in rows if len(row) == max(lengths, key=lengths.count)][:COMPARED])


def interchanged(subject: Subject, bridge: Any) -> Same:
    """Interchange of the whole stream at the last token, harmful with harmless in pairs, at every layer."""
    inputs, sources = (of_one_length(subject, label) for label in ("harmful", "harmless"))
    n = min(len(inputs), len(sources))
    inputs, sources = inputs[:n], sources[:n]
    table, ours = clocked(
        lambda: otl.interchange(subject.model, as_prompts(subject, inputs, sources), **PAIRED)
    )
    tokens = torch.tensor(otl.refusal_token_ids(subject.model))
    whole = theirs.SubspaceInterchange(torch.eye(backend(subject.model).d_model))
    columns, others = (torch.full((n,), rows.shape[1] - 1) for rows in (inputs, sources))

    @torch.no_grad()
    def logits(batch: torch.Tensor) -> torch.Tensor:
        return bridge(batch)[:, -1]

    def score(rows: torch.Tensor) -> torch.Tensor:
        p = rows.double().softmax(-1)[:, tokens].sum(1)
        return torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)

    def their() -> list[float]:
        own, effects = score(logits(inputs)), []
        for block in range(subject.n_layers):
            names = (f"blocks.{block}.hook_resid_post", f"blocks.{block}.hook_out")
            point = next(name for name in names if name in bridge.hook_dict)
            source = theirs.collect_activations(bridge, point, sources, logits, positions=others)
            found = theirs.run_with_intervention(
                bridge, point, whole, inputs, source, logits, positions=columns
            )
            effects.append(float((score(found) - own).mean()))
        return effects

    effects, seconds = clocked(their)
    own = table[table["patched"] == "harmful"].sort_values("layer")["value"].to_numpy()
    off = float(np.abs(own - np.array(effects)).max())
    return Same(f"interchange, {n} pairs, every layer", "TransformerLens", off, (seconds, ours))


def as_prompts(subject: Subject, inputs: torch.Tensor, sources: torch.Tensor) -> Contrast:
    """The test prompts that have these tokens."""
    groups = []
    for label, rows in (("harmful", inputs), ("harmless", sources)):
        group = getattr(subject.prompts.test, label)
        known = {tuple(row): p for p, row in zip(group, encode(backend(subject.model), group), strict=True)}
        groups.append(tuple(known[tuple(row)] for row in rows.tolist()))
    return Contrast(*groups)


def of_libraries(subject: Subject) -> Iterator[Same]:
    """LEACE of concept-erasure, Gaussian transport and its distance of POT, on the model's activations."""
    layer = subject.layers[-1]
    acts = otl.capture(subject.model, subject.prompts.train, layers=[layer])
    H, S = acts.harmful(layer), acts.harmless(layer)
    labels = torch.cat([torch.ones(len(H)), torch.zeros(len(S))]).double()
    options: dict[str, Any] = {
        "shrinkage": False, "constrain_cov_trace": False, "svd_tol": 1e-12, "dtype": torch.float64,
    }  # fmt: skip

    def erased() -> torch.Tensor:
        return LeaceFitter(H.shape[1], 1, **options).update(torch.cat([H, S]), labels).eraser(H)

    yield same_map("LEACE fit", "concept-erasure", erased, lambda: otl.fit_leace(H, S, shrinkage=None).map(H))

    def dense(X: torch.Tensor) -> torch.Tensor:
        fitted = Gaussian.fit(X, shrinkage="ledoit_wolf")
        return fitted.factor.T @ fitted.factor + fitted.floor * torch.eye(X.shape[1], dtype=X.dtype)

    def moved() -> torch.Tensor:
        A, b = ot.gaussian.bures_wasserstein_mapping(H.mean(0), S.mean(0), dense(H), dense(S))
        return H @ A + b

    yield same_map(
        "Gaussian transport, shrunk covariances", "POT", moved, lambda: otl.fit_gaussian_ot(H, S).map(H)
    )


def same_map(
    name: str, tool: str, their: Callable[[], torch.Tensor], our: Callable[[], torch.Tensor]
) -> Same:
    """The image of the samples under two libraries' maps, with the time of fit and image."""
    (a, first), (b, second) = best(their), best(our)
    return Same(name, tool, gap(a, b), (first, second))


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest number."""
    a, b = a.detach(), b.detach()
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


# ---------------------------------------------------------------------------------------------- printing
def edits_in_markdown(rows: pd.DataFrame) -> str:
    """The first table."""
    lines = [
        "| edit | found | refused | answered coherently | KL, harmless (nats) | processor s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.to_dict("records"):
        cells = [_cell(row[quantity], kind) for quantity, _, kind in SHOWN]
        seconds = "" if math.isnan(row["seconds"]) else f"{row['seconds']:.1f}"
        lines.append(f"| {row['edit']} | {row['found']} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def same_in_markdown(rows: Sequence[Same]) -> str:
    """The second table."""
    lines = ["| number | tool | largest difference | s, theirs | s, ours |", "|---|---|---|---|---|"]
    for row in rows:
        seconds = [f"{number:.2g}" for number in row.seconds]
        lines.append(f"| {' | '.join([row.name, row.tool, f'{row.difference:.0e}', *seconds])} |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables of a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument(
        "--sample", type=int, nargs=3, default=(96, 12, 32), metavar=("FIT", "CHOOSE", "MEASURE")
    )
    parser.add_argument(
        "--layers", type=int, default=1, metavar="STEP", help="choose among every so many layers"
    )
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--out", type=Path, help="write the rows of the first table to this Parquet file")
    options = parser.parse_args()
    subject = Subject(options.model, tuple(options.sample), options.layers, options.tokens)
    edits = []
    for edit in edits_of(subject):
        edits.append(edit)
        print(f"{edit.name}: {edit.found}, {edit.seconds:.1f} s", file=sys.stderr, flush=True)
    rows = behaviour(subject, edits)
    print(edits_in_markdown(rows), flush=True)
    print()
    print(same_in_markdown([*of_libraries(subject), *of_transformerlens(subject)]), flush=True)
    if options.out:
        flat = rows.assign(**{q: [cell["value"] for cell in rows[q]] for q, _, _ in SHOWN})
        flat.to_parquet(options.out)


if __name__ == "__main__":
    main()
