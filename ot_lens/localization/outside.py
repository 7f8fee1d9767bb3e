"""How much of what an edit touches lies outside the distribution that its map was fitted on."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.activations import Activations
from ot_lens.errors import OutOfDomainWarning
from ot_lens.generation import complete
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.domain import Domain
from ot_lens.localization.settings import SweepSettings
from ot_lens.models import Reversible, TokenBatch, backend, batches_of_rows, by_row, encode
from ot_lens.prompts import Prompt
from ot_lens.single_pass import Observe
from ot_lens.tables import NOT_A_CONTROL
from ot_lens.transport import method_label, method_named

MOST_OUTSIDE = 0.05


def with_domains(
    acts: Activations, candidates: Sequence[Candidate], settings: SweepSettings
) -> list[Candidate]:
    """The candidates with the distributions that their maps were fitted on; controls as they are."""
    sources = {c.prompts[0] for c in candidates if c.control == NOT_A_CONTROL}
    domains = {
        source: {
            layer: Domain.of(getattr(acts, source)(layer, settings.position)) for layer in settings.layers
        }
        for source in sources
    }
    return [
        replace(c, domains=domains[c.prompts[0]]) if c.control == NOT_A_CONTROL else c for c in candidates
    ]


def domains_of(candidates: Iterable[Candidate], label: str) -> Mapping[int, Domain]:
    """The domains of candidates that move a class of prompts, by layer; empty if none is asked for."""
    return next((c.domains for c in candidates if c.domains and c.prompts[0] == label), {})


def observer(domains: Mapping[int, Domain], hook: str, tokens: str) -> Observe:
    """Of each prompt's activations that a token scope touches: how many lie outside by layer; how many.

    Read from the unedited stream: exact for an edit of one layer; edits below a layer move what it sees.
    """

    def observe(
        batch: TokenBatch, streams: Sequence[Float[Tensor, "batch pos d"]]
    ) -> Float64[Tensor, "batch column"]:
        lengths = [1] * len(batch.indices) if tokens == "last" else batch.mask.sum(dim=1).tolist()
        sites = [streams[layer + (hook == "resid_post")] for layer in domains]
        counts = [_outside(d, x, lengths) for d, x in zip(domains.values(), sites, strict=True)]
        return torch.tensor([*counts, lengths], dtype=torch.float64).T

    return observe


def out_of_domain(candidate: Candidate, counts: Float64[Tensor, "prompt column"]) -> tuple[int, int]:
    """How many activations lie outside, of how many; an edit that changes nothing leaves none outside."""
    *outside, touched = map(int, counts.sum(dim=0))
    far = sum(n for layer, n in zip(candidate.domains, outside, strict=True) if layer in candidate.layers)
    return (0 if candidate.unedited else far), touched * len(candidate.layers)


def warn_of_domains(table: pd.DataFrame) -> None:
    """Warn of maps that move a distribution where they were not fitted.

    Warns:
        OutOfDomainWarning: If the share is more than 5 %.
    """
    rows = table[(table["measure"] == "out_of_domain_share") & (table["value"] > MOST_OUTSIDE)]
    rows = rows[[method_named(name).is_local for name in rows["method"]]]
    if rows.empty:
        return
    worst = rows.groupby(["method", "k"], dropna=False, sort=False)["value"].max().reset_index()
    maps = [f"{method_label(method, k)} ({share:.0%})" for method, k, share in worst.itertuples(index=False)]
    warnings.warn(
        f"At token scope {', '.join(rows['tokens'].unique())} these maps act on activations outside what "
        f"they were fitted on: {', '.join(maps)} at the worst layer. What they do there is arbitrary: use "
        "tokens='auto', which edits where they were fitted, more training prompts, or restrict_to_support.",
        OutOfDomainWarning,
        stacklevel=3,
    )


def counted(
    model: Any,
    prompts: Sequence[Prompt],
    domains: Mapping[int, Domain],
    tokens: str,
    settings: SweepSettings,
) -> Float64[Tensor, "prompt column"]:
    """What `observer` sees, in a pass of its own; at scope "generated", of the unedited model's answers."""
    served = backend(model)
    rows = encode(served, prompts)
    touched = [1 if tokens == "last" else len(row) for row in rows]
    if tokens == "generated":
        budget, size = settings.panel.max_new_tokens, settings.panel.batch_size
        answers = [a.tokens for a in complete(model, prompts, max_new_tokens=budget, batch_size=size)]
        rows = [[*row, *answer] for row, answer in zip(rows, answers, strict=True)]
        touched = [len(answer) for answer in answers]
    whole = batches_of_rows(served, rows, settings.panel.batch_size)

    def read(batch: TokenBatch) -> Float64[Tensor, "batch column"]:
        lengths = [touched[index] for index in batch.indices]
        counts: list[list[int]] = []

        def listen(changes: Reversible[None]) -> None:
            for layer, domain in domains.items():
                changes.edit(served.hook_point(layer, settings.hook), partial(note, domain))

        def note(domain: Domain, x: Tensor, hook: Any) -> None:  # noqa: ARG001  passed by name
            counts.append(_outside(domain, x, lengths))

        with Reversible(listen):
            served.logits(batch.tokens, batch.mask, keep=1)
        return torch.tensor([*counts, lengths], dtype=torch.float64).T

    return torch.stack(by_row(served, whole, read))


def _outside(domain: Domain, x: Float[Tensor, "batch pos d"], lengths: Sequence[int]) -> list[int]:
    """How many of the last activations of each row lie outside."""
    rows = torch.cat([row[-length:] for row, length in zip(x, lengths, strict=True)])
    return [int(part.sum()) for part in domain.outside(rows.cpu().double()).split(list(lengths))]
