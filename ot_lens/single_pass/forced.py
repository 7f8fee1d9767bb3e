"""Given answers under many edits: what the model would have said at every token, in one pass a batch.

The prompts and answers run once without edits. Then a candidate's row starts at the first layer it edits:
below it nothing changes. Nor does anything before the last prompt token at the scopes "last" and "generated".
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformers import DynamicCache

from ot_lens.errors import nan_logits
from ot_lens.interventions import AppliedMap, Edits, RowMaps, intervene
from ot_lens.models import HFBackend, TokenBatch, batches_of_rows, evaluating, in_memory
from ot_lens.models.overflow import overflowed
from ot_lens.single_pass.hugging_face import HuggingFaceRecord
from ot_lens.single_pass.prefixes import Prefixes
from ot_lens.single_pass.walk import replayed

# Bytes for the streams of a batch of sequences, and for the logits of a few rows.
STREAMS, LOGITS = 2**28, 2**27
CPU_TOKENS = 1024

Exchange = tuple[int, tuple[int, ...]]  # a prompt and an answer to it


@dataclass(frozen=True)
class Row:
    """A candidate's edits, a prompt, and an answer that it may give."""

    candidate: int
    prompt: int
    answer: tuple[int, ...]
    scored: bool = False


@dataclass(frozen=True, eq=False)
class Reading:
    """What the model says at each token of a given answer, having read the answer so far."""

    best: tuple[int, ...]
    logits: Float[Tensor, "token two"]  # the two largest
    nll: Float64[Tensor, " token"] | None  # of the given tokens, in nats, where it was asked for


@dataclass(frozen=True, eq=False)
class Plan:
    """The edits of one candidate: of the stream that enters a block, by block, and inside blocks."""

    entering: dict[int, AppliedMap]  # block n_layers is the final norm
    inside: dict[int, dict[str, AppliedMap]]

    @classmethod
    def of(cls, edits: Edits, hook: str) -> "Plan":
        """The plan of edits; those that change nothing are left out."""
        entering: dict[int, AppliedMap] = {}
        inside: dict[int, dict[str, AppliedMap]] = {}
        for site, edit in edits.items():
            layer, name = site if isinstance(site, tuple) else (site, hook)
            if edit.is_identity:
                continue
            if name in ("resid_pre", "resid_post"):
                entering[layer + (name == "resid_post")] = edit
            else:
                inside.setdefault(layer, {})[name] = edit
        return cls(entering, inside)

    @property
    def first(self) -> int | None:
        """The first block whose input or inside it edits; None if it edits nothing."""
        return min([*self.entering, *self.inside], default=None)


class Forcing:
    """Reads given answers to some prompts under candidates' edits, which act at a token scope."""

    def __init__(
        self,
        served: HFBackend,
        prompts: Sequence[Sequence[int]],
        plans: Sequence[Plan],
        tokens: str,
        batch_size: int,
    ) -> None:
        self.served, self.prompts, self.plans = served, prompts, plans
        self.tokens, self.batch_size = tokens, batch_size
        self._prefixes = Prefixes(served, prompts, batch_size) if self._rereads_only_answers else None
        self._batches: list[tuple[list[Exchange], TokenBatch]] = []
        self._place: dict[Exchange, tuple[int, int]] = {}  # its batch, and where it is in it
        self._records: dict[tuple[int, tuple[int, ...]], HuggingFaceRecord] = {}

    def read(self, rows: Sequence[Row]) -> list[Reading]:
        """The reading of every row.

        Raises:
            SinglePassError: If the model cannot be replayed block by block.
            ActivationError: If logits are NaN.
        """
        self._add(dict.fromkeys((row.prompt, row.answer) for row in rows))
        members: dict[int, dict[int, list[int]]] = {}
        for number, row in enumerate(rows):
            batch, index = self._place[row.prompt, row.answer]
            members.setdefault(batch, {}).setdefault(index, []).append(number)
        readings: dict[int, Reading] = {}
        with evaluating(self.served.model):
            for number, of_sequence in members.items():
                read = partial(self._read, number, of_sequence, rows)
                for _, some in in_memory(read, self._batches[number][1]):
                    readings |= some
        return [readings[number] for number in range(len(rows))]

    def prefix(self, numbers: Sequence[int], width: int) -> DynamicCache | None:
        """What the model has read of some prompts before their last tokens, if no edit changes that."""
        return None if self._prefixes is None else self._prefixes.cache(numbers, width)

    def price(self, candidate: int) -> float:
        """What reading an answer under a candidate's edits costs, as a share of generating it.

        A CPU takes as long for many tokens at once as for one after the other; elsewhere reading is one step.
        """
        n_layers = self.served.n_layers
        return 1 - self._first(candidate) / n_layers if self.served.device.type == "cpu" else 0.0

    def _add(self, sequences: Iterable[Exchange]) -> None:
        """Put new sequences into batches, which stay as they are."""
        for group in _alike([sequence for sequence in sequences if sequence not in self._place]):
            size = self._size(group)
            for batch in batches_of_rows(self.served, [self.prompts[prompt] for prompt, _ in group], size):
                own = [group[index] for index in batch.indices]
                self._place |= {sequence: (len(self._batches), i) for i, sequence in enumerate(own)}
                numbered = TokenBatch(tuple(range(len(own))), batch.tokens, batch.mask)
                self._batches.append((own, numbered))

    def _size(self, group: Sequence[Exchange]) -> int:
        """Sequences per batch, so that their streams fit."""
        width = max(len(answer) for _, answer in group)
        if not self._rereads_only_answers:
            width += max(len(self.prompts[prompt]) for prompt, _ in group)
        each = 4 * (self.served.n_layers + 1) * width * self.served.d_model
        return max(1, min(self.batch_size, STREAMS // (4 * each)))

    @property
    def _rereads_only_answers(self) -> bool:
        return self.tokens in ("last", "generated")

    def _read(
        self, number: int, of_sequence: dict[int, list[int]], rows: Sequence[Row], batch: TokenBatch
    ) -> dict[int, Reading]:
        """Readings of the rows of a batch's sequences."""
        width = batch.tokens.shape[1]
        record = self._recorded(number, batch)
        start = width - 1 if self._rereads_only_answers else 0
        numbers = [(n, i) for i, index in enumerate(batch.indices) for n in of_sequence.get(index, ())]
        numbers.sort(key=lambda item: self._first(rows[item[0]].candidate))
        positions = len(record.streams[0][0])
        size = max(1, CPU_TOKENS // positions)
        if self.served.device.type != "cpu":
            size = max(1, STREAMS // (64 * positions * self.served.d_model))
        readings: dict[int, Reading] = {}
        for part in range(0, len(numbers), size):
            chunk = numbers[part : part + size]
            plans = [self.plans[rows[n].candidate] for n, _ in chunk]
            owners = torch.tensor([i for _, i in chunk], device=record.streams[0].device)
            stream = self._walk(record, plans, owners, self._touched(width, start))[:, width - 1 - start :]
            found = _readings(record, stream, [rows[n] for n, _ in chunk])
            readings |= zip((n for n, _ in chunk), found, strict=True)
        return readings

    def _recorded(self, number: int, batch: TokenBatch) -> HuggingFaceRecord:
        """The unedited pass of a batch, which is kept as long as there is room."""
        key = number, batch.indices
        record = self._records.pop(key, None)
        if record is None:
            record = self._record(batch, [self._batches[number][0][index] for index in batch.indices])
        self._records[key] = record
        while len(self._records) > 1 and sum(r.nbytes for r in self._records.values()) > STREAMS:
            del self._records[next(iter(self._records))]
        return record

    def _record(self, batch: TokenBatch, exchanges: Sequence[Exchange]) -> HuggingFaceRecord:
        """Prompts and answers, except an answer's last token, run without edits."""
        longest = max(len(answer) for _, answer in exchanges)
        # What follows an answer is never read by what comes before it.
        padded = [[*answer, *[answer[-1]] * (longest - len(answer))][:-1] for _, answer in exchanges]
        given = torch.tensor(padded, dtype=torch.long, device=batch.tokens.device).reshape(len(exchanges), -1)
        tokens = torch.cat([batch.tokens, given], dim=1)
        mask = torch.cat([batch.mask, torch.ones_like(given)], dim=1)
        width = batch.tokens.shape[1]
        start = width - 1 if self._rereads_only_answers else 0
        read = self.prefix([prompt for prompt, _ in exchanges], width)
        whole = TokenBatch(batch.indices, tokens, mask)
        return replayed(HuggingFaceRecord, self.served.hf_model, whole, start=start, read=read)

    def _first(self, candidate: int) -> int:
        first = self.plans[candidate].first
        return self.served.n_layers if first is None else first

    def _touched(self, width: int, start: int) -> slice:
        """The positions of a row that the edits act on, counted from the row's start."""
        last = width - 1 - start
        bounds = {"all": slice(0, None), "prompt": slice(0, width), "last": slice(last, last + 1)}
        return bounds.get(self.tokens, slice(last + 1, None))

    def _walk(
        self,
        record: HuggingFaceRecord,
        plans: Sequence[Plan],
        owners: Int[Tensor, " row"],
        touched: slice,
    ) -> Float[Tensor, "row pos d"]:
        """Rows, in the order of their first edit, as they leave the last block."""
        n_layers = self.served.n_layers
        firsts = [n_layers if plan.first is None else plan.first for plan in plans]
        rows = record.streams[firsts[0]][:0]
        for site in range(firsts[0], n_layers + 1):
            stream = record.streams[site]
            joined = sum(first <= site for first in firsts)
            own = owners[:joined].to(stream.device)
            rows = torch.cat([rows.to(stream.device), stream[own[len(rows) :]]])
            edited = by_map((i, plan.entering.get(site)) for i, plan in enumerate(plans[:joined]))
            if edited:
                rows = RowMaps(edited, touched)(rows)
            if site < n_layers:
                rows = self._block(record, site, rows, own, plans[:joined], touched)
        return rows

    def _block(
        self,
        record: HuggingFaceRecord,
        layer: int,
        rows: Float[Tensor, "row pos d"],
        own: Int[Tensor, " row"],
        plans: Sequence[Plan],
        touched: slice,
    ) -> Float[Tensor, "row pos d"]:
        names = dict.fromkeys(name for plan in plans for name in plan.inside.get(layer, {}))
        edits = {
            (layer, name): RowMaps(
                by_map((i, plan.inside.get(layer, {}).get(name)) for i, plan in enumerate(plans)), touched
            )
            for name in names
        }
        with intervene(self.served.model, edits):
            return replayed(record.block_of, layer, rows, own)


def _alike(sequences: Sequence[Exchange]) -> Iterator[list[Exchange]]:
    """Sequences whose answers are about as long as each other's."""
    ordered = sorted(sequences, key=lambda sequence: len(sequence[1]).bit_length())
    for _, group in groupby(ordered, key=lambda sequence: len(sequence[1]).bit_length()):
        yield list(group)


def by_map(numbered: Iterable[tuple[int, AppliedMap | None]]) -> tuple[tuple[Tensor, AppliedMap], ...]:
    """The rows of each map."""
    rows: dict[int, list[int]] = {}
    maps: dict[int, AppliedMap] = {}
    for number, edit in numbered:
        if edit is not None:
            rows.setdefault(id(edit), []).append(number)
            maps[id(edit)] = edit
    return tuple((torch.tensor(numbers), maps[key]) for key, numbers in rows.items())


def _readings(
    record: HuggingFaceRecord, stream: Float[Tensor, "row pos d"], rows: Sequence[Row]
) -> Iterator[Reading]:
    """Readings of rows that begin at the last prompt token, a few rows' logits at a time."""
    longest = max(len(row.answer) for row in rows)
    size = max(1, LOGITS // (8 * longest * record.own_logits.shape[-1]))
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        logits = replayed(record.unembed, stream[start : start + size, :longest])
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        top = logits.topk(2, dim=-1)
        values, best = top.values.cpu(), top.indices[..., 0].cpu()
        for number, row in enumerate(some):
            length = len(row.answer)
            if bool(overflowed(values[number, :length]).any()):
                raise nan_logits(1, len(rows))
            nll = _nll(logits[number, :length], row.answer) if row.scored else None
            yield Reading(tuple(best[number, :length].tolist()), values[number, :length], nll)


def _nll(logits: Float[Tensor, "token d_vocab"], answer: Sequence[int]) -> Float64[Tensor, " token"]:
    given = torch.tensor(answer)[:, None]
    return -logits.cpu().double().log_softmax(dim=-1).gather(-1, given)[:, 0]
