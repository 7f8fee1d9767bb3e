"""How much of what an edit touches lies outside the distribution that its map was fitted on."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from scipy import stats
from torch import Tensor

from ot_lens.activations import Activations
from ot_lens.errors import FitError, OutOfDomainWarning
from ot_lens.execution import Runner
from ot_lens.gaussian import Gaussian
from ot_lens.generation import complete
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.settings import SweepSettings
from ot_lens.models import Backend, Reversible, TokenBatch, backend, batches_of_rows, by_row, encode
from ot_lens.progress import Stage, silent
from ot_lens.prompts import Contrast, Prompt
from ot_lens.tables import INDUCE, NOT_A_CONTROL
from ot_lens.transport import TRANSPORT, method_named

FOLDS = 5
QUANTILE = 0.999
# The same quantile of one standard normal coordinate: no limit is tighter, whatever the folds say.
LEAST = 3.29
MOST_OUTSIDE = 0.05


@dataclass(frozen=True, eq=False)
class Domain:
    """The source of a fit at one layer, and the distance from its mean within which almost all of it lies."""

    gaussian: Gaussian
    limit: float

    @classmethod
    def of(cls, samples: Float64[Tensor, "n d"]) -> "Domain":
        """From the samples of the fit; the limit is the 99.9 % quantile of their own held-out distances."""
        held_out = []
        for fold in range(min(FOLDS, len(samples))):
            rest = torch.ones(len(samples), dtype=torch.bool)
            rest[fold::FOLDS] = False
            if rest.sum() > 1:
                held_out.append(_gaussian(samples[rest]).mahalanobis(samples[~rest]))
        distances = torch.cat(held_out).numpy() if held_out else np.array([])
        return cls(_gaussian(samples), _limit(distances))

    def outside(self, x: Float64[Tensor, "n d"]) -> Bool[Tensor, " n"]:
        """Whether each of some activations lies outside."""
        return self.gaussian.mahalanobis(x) > self.limit


def _limit(distances: Float64[np.ndarray, " n"]) -> float:
    """Their 99.9 % quantile; of a few, the prediction limit of one more if their logarithms are normal."""
    if len(distances) < 2:
        return float("inf")
    logs = np.log(np.maximum(distances, np.finfo(float).tiny))
    spread = float(logs.std(ddof=1)) * math.sqrt(1 + 1 / len(logs))
    predicted = math.exp(float(logs.mean()) + float(stats.t.ppf(QUANTILE, len(logs) - 1)) * spread)
    return max(float(np.quantile(distances, QUANTILE)), predicted, LEAST)


def _gaussian(samples: Float64[Tensor, "n d"]) -> Gaussian:
    """Shrunk covariance; a small ridge where samples do not vary, as where all prompts end in one token."""
    fitted = Gaussian.fit(samples, shrinkage="ledoit_wolf")
    try:
        fitted.mahalanobis(samples[:1])
    except FitError:
        ridge = 1e-9 * float(samples.square().mean()) + 1e-30
        return Gaussian.fit(samples, shrinkage="ledoit_wolf", ridge=ridge)
    return fitted


def with_domains(
    runner: Runner,
    prompts: Contrast,
    acts: Activations,
    candidates: Sequence[Candidate],
    settings: SweepSettings,
    stage: Stage = silent,
) -> list[Candidate]:
    """The candidates with the share of what they touch that lies outside; controls as they are.

    Read from the unedited stream on the prompts that candidates are measured on: exact for an edit of one
    layer, while edits below a layer move what it sees. At scope "generated" the tokens are those of the
    unedited model's answers.

    Warns:
        OutOfDomainWarning: If it is more than 5 % for a map that moves a distribution.
    """
    groups = dict(prompts)
    cases = {_case(c): (_source(c), c.tokens) for c in candidates if c.control == NOT_A_CONTROL}
    domains = {
        source: {
            layer: Domain.of(getattr(acts, source)(layer, settings.position)) for layer in settings.layers
        }
        for source in {source for case, (source, _) in cases.items() if case not in runner.cache}
    }
    tasks = {case: (groups[source], domains.get(source), tokens) for case, (source, tokens) in cases.items()}
    with stage("domains of the maps", len(tasks)) as step:
        counts = runner.map(counted, tasks, settings, progress=lambda _case: step(1))
    placed = [
        candidate
        if candidate.control != NOT_A_CONTROL
        else replace(candidate, outside=_total(candidate, counts[_case(candidate)], settings.layers))
        for candidate in candidates
    ]
    _warn(placed)
    return placed


def _source(candidate: Candidate) -> str:
    return "harmless" if candidate.transport == INDUCE else "harmful"


def _case(candidate: Candidate) -> str:
    return f"domain|{_source(candidate)}|{candidate.tokens}"


def _total(candidate: Candidate, counts: Sequence[int], layers: Sequence[int]) -> tuple[int, int]:
    """How many activations lie outside, of how many; an edit that changes nothing leaves none outside."""
    *outside, touched = counts
    far = sum(outside[layers.index(layer)] for layer in candidate.layers)
    return (0 if candidate.unedited else far), touched * len(candidate.layers)


def _warn(candidates: Sequence[Candidate]) -> None:
    shares: dict[tuple[str, str], float] = {}
    for candidate in candidates:
        if candidate.outside and method_named(candidate.method.name).family == TRANSPORT:
            outside, touched = candidate.outside
            case = (candidate.method.label, candidate.tokens)
            shares[case] = max(shares.get(case, 0.0), outside / touched)
    far = [f"{label} ({share:.0%})" for (label, _), share in shares.items() if share > MOST_OUTSIDE]
    scopes = ", ".join(dict.fromkeys(tokens for (_, tokens), share in shares.items() if share > MOST_OUTSIDE))
    if far:
        warnings.warn(
            f"At token scope {scopes} these maps act on activations outside what they were fitted on: "
            f"{', '.join(far)} at the worst layer. What they do there is arbitrary: use tokens='auto', which "
            "edits where they were fitted, more training prompts, or restrict_to_support.",
            OutOfDomainWarning,
            stacklevel=3,
        )


def counted(
    model: Any,
    settings: SweepSettings,
    task: tuple[Sequence[Prompt], Mapping[int, Domain], str],
) -> list[int]:
    """Of the activations that a token scope touches: how many lie outside at each layer, then how many."""
    prompts, domains, tokens = task
    served = backend(model)
    rows = encode(served, prompts)
    touched = [1 if tokens == "last" else len(row) for row in rows]
    if tokens == "generated":
        budget, size = settings.panel.max_new_tokens, settings.panel.batch_size
        answers = [a.tokens for a in complete(model, prompts, max_new_tokens=budget, batch_size=size)]
        rows = [[*row, *answer] for row, answer in zip(rows, answers, strict=True)]
        touched = [len(answer) for answer in answers]
    whole = batches_of_rows(served, rows, settings.panel.batch_size)
    counts = torch.stack(
        by_row(served, whole, lambda batch: _outside(served, batch, domains, touched, settings))
    )
    return [*map(int, counts.sum(dim=0).tolist()), sum(touched)]


def _outside(
    served: Backend,
    batch: TokenBatch,
    domains: Mapping[int, Domain],
    touched: Sequence[int],
    settings: SweepSettings,
) -> Float[Tensor, "batch layer"]:
    """How many of the last activations of each row lie outside, by layer, in one forward pass."""
    counts = torch.zeros(len(batch.indices), len(domains))

    def listen(changes: Reversible[None]) -> None:
        for column, (layer, domain) in enumerate(domains.items()):
            changes.edit(served.hook_point(layer, settings.hook), reader(column, domain))

    def reader(column: int, domain: Domain) -> Any:
        def read(x: Tensor, hook: Any) -> None:  # noqa: ARG001  TransformerLens passes it by name
            lengths = [touched[index] for index in batch.indices]
            rows = torch.cat([row[-length:] for row, length in zip(x, lengths, strict=True)])
            outside = domain.outside(rows.cpu().double())
            counts[:, column] = torch.tensor([int(part.sum()) for part in outside.split(lengths)])

        return read

    with Reversible(listen):
        served.logits(batch.tokens, batch.mask, keep=1)
    return counts
