"""Greedy answers under many edits, token for token those of plain generation, mostly without generating.

Most candidates give an answer that is known already: the unedited model's, a reference, or a neighbour's. One
pass over prompt and known answer (`forced`) shows whether the model would give it: speculative decoding
(Leviathan et al. 2023, arXiv 2211.17192) with answers in place of a draft model. The two ways of reading
round differently: a row whose two best logits are ever closer than a measured margin is generated, as is an
answer that nobody knows.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.errors import SinglePassError
from ot_lens.generation import Completion, completion, generated, opened_thoughts
from ot_lens.interventions import AppliedMap, Edits, RowMaps, Site, intervene
from ot_lens.models import HFBackend, Reversible, TokenBatch, backend, batches_of_rows, encode
from ot_lens.prompts import Prompt
from ot_lens.single_pass.forced import Forcing, Plan, Reading, Row, by_map
from ot_lens.single_pass.walk import rounding

# The margin, in largest differences between the logits of the two ways of reading.
MARGIN = 4
LEAST_MARGIN = 16  # roundings of the largest logit
MEASURED = 32  # answers that it is measured on, at most

Tokens = tuple[int, ...]
Pair = tuple[int, int]  # candidate and prompt
Recorded = tuple[tuple[int, ...], list[Float[Tensor, "batch two"]]]  # numbers of a batch's rows; its steps


@dataclass(frozen=True, eq=False)
class Answered:
    """Answers under one candidate's edits, by prompt, and of each how many tokens were verified."""

    candidate: int
    completions: Mapping[int, Completion]
    verified: Mapping[int, int]
    nll: Mapping[int, Float64[Tensor, " _"]]  # of the reference answers
    unedited: Mapping[int, Float64[Tensor, " _"]]  # of these answers, without edits


def answer_sweep(
    model: Any,
    prompts: Sequence[Prompt | str],
    candidates: Sequence[Edits],
    asked: Sequence[Sequence[int]],
    known: Sequence[Sequence[Tokens]],
    *,
    references: Mapping[int, Tokens] | None = None,
    tokens: str = "all",
    hook: str = "resid_pre",
    max_new_tokens: int = 64,
    batch_size: int = 64,
) -> Iterator[list[Answered]]:
    """Answers of every candidate to the prompts it is asked, some candidates at a time.

    Some answers of the first candidate are generated as plain hooks would, and then verified, which measures
    the margin and checks the replay.

    Args:
        model: A hooked Hugging Face model.
        prompts: Requests.
        candidates: Edits of each candidate.
        asked: Numbers of the prompts of each candidate.
        known: Answers that each prompt may be given, likely ones first; each ends in a terminator or has
            `max_new_tokens` tokens.
        references: Answers whose loss is wanted as well, by prompt.
        tokens: Token scope of the edits.
        hook: Hook point of sites given by layer only.
        max_new_tokens: Token budget of an answer.
        batch_size: Sequences per batch.

    Raises:
        SinglePassError: If the model cannot be replayed block by block.
        ActivationError: If logits are NaN.
    """
    sweep = _Sweep(
        model, prompts, candidates, known, references or {}, tokens, hook, max_new_tokens, batch_size
    )
    for wave in _waves(len(candidates)):
        yield sweep.answer(wave, asked)


def _waves(count: int) -> Iterator[list[int]]:
    """The first candidate, then ever more at a time, each between two that are done."""
    done: set[int] = set()
    stride = 1 << max(count - 1, 0).bit_length()
    while len(done) < count:
        wave = [number for number in range(0, count, stride) if number not in done]
        if wave:
            yield wave
        done |= set(wave)
        stride //= 2


class _Sweep:
    def __init__(  # noqa: PLR0917
        self,
        model: Any,
        prompts: Sequence[Prompt | str],
        candidates: Sequence[Edits],
        known: Sequence[Sequence[Tokens]],
        references: Mapping[int, Tokens],
        tokens: str,
        hook: str,
        budget: int,
        batch_size: int,
    ) -> None:
        served = backend(model)
        if not isinstance(served, HFBackend):
            raise SinglePassError("Answers are replayed on Hugging Face models only.")
        self._served, self._model = served, model
        self._prompts = encode(served, prompts, room=budget)
        self._opened = opened_thoughts(served, prompts)
        self._edits = [_by_site(edits, hook) for edits in candidates]
        self._tokens, self._budget, self._batch_size = tokens, budget, batch_size
        plans = [Plan.of(edits, hook) for edits in (*candidates, {})]
        self._no_edits = len(candidates)
        self._forcing = Forcing(served, self._prompts, plans, tokens, batch_size)
        self._stops = set(served.terminators)
        self._references = references
        self._known = [[cut for answer in likely if (cut := self._cut(answer))] for likely in known]
        self._given: list[dict[int, Tokens]] = [{} for _ in known]  # by prompt and candidate
        self._completions: dict[tuple[Tokens, bool], Completion] = {}
        self._unedited: dict[tuple[int, Tokens], Tensor] = {}  # NLL of an answer to a prompt
        self._margin: float | None = None
        self._foreseen = 1.0  # share of the last wave's answers that were known

    def answer(self, wave: Sequence[int], asked: Sequence[Sequence[int]]) -> list[Answered]:
        """Answers of some candidates."""
        pairs = [(candidate, prompt) for candidate in wave for prompt in asked[candidate]]
        nll: dict[Pair, Tensor] = {}
        measured = self._first(pairs[:: -(-len(pairs) // MEASURED)], nll) if self._margin is None else {}
        drafts = {pair: self._draft(*pair, ()) for pair in pairs if pair not in measured}
        verified = self._verify(drafts, nll)
        made = measured | self._generate([pair for pair in drafts if pair not in verified])
        hits = sum(made[pair] == draft for pair, draft in drafts.items() if pair in made)
        self._foreseen = (len(verified) + hits) / len(drafts) if drafts else 1.0
        given = verified | made
        for (candidate, prompt), answer in given.items():
            self._given[prompt][candidate] = answer
        self._read_unedited(dict.fromkeys((prompt, answer) for (_, prompt), answer in given.items()))
        return [self._answered(c, asked[c], given, verified, nll) for c in wave]

    def _answered(
        self,
        candidate: int,
        asked: Sequence[int],
        given: Mapping[Pair, Tokens],
        verified: Collection[Pair],
        nll: Mapping[Pair, Tensor],
    ) -> Answered:
        return Answered(
            candidate,
            {prompt: self._completion(given[candidate, prompt], self._opened[prompt]) for prompt in asked},
            {p: len(given[candidate, p]) if (candidate, p) in verified else 0 for p in asked},
            {prompt: nll[candidate, prompt] for prompt in asked if (candidate, prompt) in nll},
            {prompt: self._unedited[prompt, given[candidate, prompt]] for prompt in asked},
        )

    def _read_unedited(self, given: Iterable[tuple[int, Tokens]]) -> None:
        """The likelihood of new answers without edits."""
        new = [Row(self._no_edits, *pair, scored=True) for pair in given if pair not in self._unedited]
        for row, reading in zip(new, self._forcing.read(new), strict=True):
            assert reading.nll is not None
            self._unedited[row.prompt, row.answer] = reading.nll

    def _completion(self, answer: Tokens, opened: bool) -> Completion:
        if (answer, opened) not in self._completions:
            self._completions[answer, opened] = completion(self._served, answer, opened)
        return self._completions[answer, opened]

    def _cut(self, answer: Tokens) -> Tokens:
        """An answer up to its end or the budget; empty if it has neither, and so is none."""
        cut = answer[: self._budget]
        end = next((i for i, token in enumerate(cut) if token in self._stops), None)
        if end is None:
            return cut if len(cut) == self._budget else ()
        return cut[: end + 1]

    def _verify(self, likely: Mapping[Pair, Tokens], nll: dict[Pair, Tensor]) -> dict[Pair, Tokens]:
        """The answers that known ones, or beginnings of known ones, turn out to be, where that pays."""
        found: dict[Pair, Tokens] = {}
        drafts = {
            pair: draft if self._forcing.price(pair[0]) <= self._foreseen else ()
            for pair, draft in likely.items()
        }
        rows = [row for row in self._scored([*drafts]) if row.answer != drafts[row.candidate, row.prompt]]
        rows += [
            Row(*pair, draft, scored=draft == self._references.get(pair[1]))
            for pair, draft in drafts.items()
            if draft
        ]
        while rows:
            waiting: list[Row] = []
            for row, reading in zip(rows, self._forcing.read(rows), strict=True):
                pair = row.candidate, row.prompt
                if reading.nll is not None:
                    nll[pair] = reading.nll
                begun = self._accepted(row.answer, reading)
                if begun and self._cut(begun) == begun:
                    found[pair] = begun
                elif begun and row.answer == drafts[pair] and (draft := self._draft(*pair, begun)):
                    waiting.append(Row(*pair, draft))
                    drafts[pair] = draft
            rows = [row for row in waiting if (row.candidate, row.prompt) not in found]
        return found

    def _scored(self, pairs: Sequence[Pair]) -> list[Row]:
        """Reference answers, whose loss is wanted; they may be the answers as well."""
        return [Row(c, p, self._references[p], scored=True) for c, p in pairs if p in self._references]

    def _accepted(self, answer: Tokens, reading: Reading) -> Tokens:
        """The beginning of the model's answer that a reading shows; empty if two tokens are too close."""
        gaps = (reading.logits[:, 0] - reading.logits[:, 1]).tolist()
        begun: Tokens = ()
        for token, best, gap in zip(answer[: self._budget], reading.best, gaps, strict=False):
            if not gap > self._margin:
                return ()
            begun = (*begun, best)
            if best != token or best in self._stops:
                break
        return begun

    def _draft(self, candidate: int, prompt: int, begun: Tokens) -> Tokens:
        """The nearest candidate's answer with that beginning, else one known beforehand, if any."""
        given = self._given[prompt]
        near = sorted(given, key=lambda other: abs(other - candidate))
        likely = [*(given[other] for other in near), *self._known[prompt]]
        return next((answer for answer in likely if answer[: len(begun)] == begun), ())

    def _generate(self, pairs: Sequence[Pair], recorded: list[Recorded] | None = None) -> dict[Pair, Tokens]:
        """Generate answers; a batch holds rows of several candidates."""
        if not pairs:
            return {}
        whole = batches_of_rows(
            self._served, [self._prompts[prompt] for _, prompt in pairs], self._batch_size
        )

        def editing(batch: TokenBatch) -> AbstractContextManager[Any]:
            if recorded is not None:
                recorded.append((batch.indices, []))
            by_row = [self._edits[pairs[index][0]] for index in batch.indices]
            width = batch.tokens.shape[1]
            return intervene(self._model, _rowwise(by_row), self._tokens, prompt_length=width)

        def read(batch: TokenBatch) -> Any:
            # What the model itself makes of the whole prompt is the measure.
            if recorded is not None:
                return None
            return self._forcing.prefix([pairs[i][1] for i in batch.indices], batch.tokens.shape[1])

        stops = self._served.terminators
        rows = generated(self._served, whole, self._budget, stops, editing=editing, read=read)
        return {pair: tuple(answer) for pair, answer in zip(pairs, rows, strict=True)}

    def _first(self, pairs: Sequence[Pair], nll: dict[Pair, Tensor]) -> dict[Pair, Tokens]:
        """Generate answers, and measure how much the logits differ from those of the verifying pass."""
        recorded: list[Recorded] = []

        def listen(_module: Any, _inputs: Any, output: Any) -> None:
            recorded[-1][1].append(output.logits[:, -1].topk(2).values.cpu())

        with Reversible(lambda changes: changes.after(self._served.hf_model, listen)):
            given = self._generate(pairs, recorded)
        # Halves of a batch that did not fit come after it.
        stepwise = {
            pairs[index]: torch.stack(steps)[:, row]
            for indices, steps in recorded
            if steps
            for row, index in enumerate(indices)
        }
        readings = self._forcing.read([Row(*pair, answer) for pair, answer in given.items()])
        largest = [
            (stepwise[pair][: len(r.logits)], r.logits) for pair, r in zip(given, readings, strict=True)
        ]
        scale = max(float(steps.abs().max()) for steps, _ in largest)
        apart = max(float((steps.to(read.dtype) - read).abs().max()) for steps, read in largest)
        dtype = largest[0][0].dtype
        if not apart <= rounding(dtype) * scale:
            raise SinglePassError(f"Replayed logits of answers differ from the model's by {apart:.1e}.")
        self._margin = MARGIN * apart + LEAST_MARGIN * torch.finfo(dtype).eps * scale
        rows = self._scored(pairs)
        for row, reading in zip(rows, self._forcing.read(rows), strict=True):
            assert reading.nll is not None
            nll[row.candidate, row.prompt] = reading.nll
        return given


def _by_site(edits: Edits, hook: str) -> dict[tuple[int, str], AppliedMap]:
    return {site if isinstance(site, tuple) else (site, hook): edit for site, edit in edits.items()}


def _rowwise(by_row: Sequence[Mapping[tuple[int, str], AppliedMap]]) -> dict[Site, AppliedMap]:
    """The edits of a batch whose rows have different ones."""
    sites = dict.fromkeys(site for edits in by_row for site in edits)
    return {site: RowMaps(by_map((i, edits.get(site)) for i, edits in enumerate(by_row))) for site in sites}
