"""One walk up the blocks of a recorded forward pass, with a growing set of rows: each edit adds one.

Rows are [row, batch, position, d_model]; with scope "last" there is one position, the prompt's last.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ot_lens.errors import SinglePassError
from ot_lens.io.untrusted import abbreviated
from ot_lens.linalg import float64
from ot_lens.models import Backend, HFBackend, TokenBatch
from ot_lens.models.batching import is_out_of_memory
from ot_lens.single_pass.hooked_transformer import HookedTransformerRecord
from ot_lens.single_pass.hugging_face import HuggingFaceRecord

# Relative to the largest logit: float32 sums in a different order differ by less, a wrong replay by far more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}

T = TypeVar("T")
Record = HuggingFaceRecord | HookedTransformerRecord
# Edits of one candidate by the block whose input they change; block n_layers is the final norm.
Plan = tuple[tuple[int, Callable[[Tensor], Tensor]], ...]
Node = tuple[tuple[int, int], ...]


def run(served: Backend, batch: TokenBatch, *, last: bool) -> Record:
    """Run a forward pass and record it."""
    if isinstance(served, HFBackend):
        return replayed(HuggingFaceRecord, served.hf_model, batch, last=last)
    return replayed(HookedTransformerRecord, served.model, batch, last=last)


def difference_of(logits: Float[Tensor, "*row batch d_vocab"], own: Float[Tensor, "batch d_vocab"]) -> float:
    """How far logits are from the model's own, relative to the largest; NaN if either is."""
    expected = float64(own)
    off = (float64(logits).to(expected.device) - expected).abs().max() / expected.abs().max()
    return float(off)


def rounding(dtype: torch.dtype) -> float:
    """The difference that rounding explains."""
    return TOLERANCE.get(dtype, 1e-3)


def replayed(step: Callable[..., T], *args: Any, **options: Any) -> T:
    """A step of the replay: an error other than a lack of memory says that the model cannot be replayed."""
    try:
        return step(*args, **options)
    except SinglePassError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise SinglePassError(
            f"A block cannot be run again on its own input ({type(error).__name__}: {abbreviated(error)})"
        ) from error


@dataclass
class _Rows:
    """The current rows, and the sequence of edits that each one carries."""

    nodes: list[Node]
    values: Float[Tensor, "row batch pos d"]


def walk(
    record: Record,
    plans: Sequence[Plan],
    finish: Callable[[list[int], Float[Tensor, "row batch pos d"]], None],
    *,
    chunk: int,
) -> None:
    """Carry every plan's edited stream to the top.

    Candidates that begin with the same edits share a row until they diverge, so that all pairs of layers need
    no more rows than there are pairs. Each plan's edits ascend by site; `finish` gets plan numbers and their
    rows as they leave the last block; blocks run on `chunk` rows at a time.
    """
    n_layers = len(record.streams) - 1
    tree = _Tree(plans, n_layers)
    rows = _Rows([], record.streams[0].new_empty(0, *record.streams[0].shape))
    for site in range(n_layers + 1):
        # A model may be spread over devices: rows follow the stream.
        rows = _Rows(rows.nodes, rows.values.to(record.streams[site].device))
        rows = _grow(rows, tree, record.streams[site], site)
        if site < n_layers and rows.nodes:
            parts = [replayed(record.block, site, part) for part in rows.values.split(chunk)]
            rows = _Rows(rows.nodes, torch.cat(parts))
    index = {node: i for i, node in enumerate(rows.nodes)}
    for start in range(0, len(plans), chunk):
        numbers = list(range(start, min(start + chunk, len(plans))))
        finish(numbers, rows.values[[index[tree.finals[n]] for n in numbers]])


class _Tree:
    """Plans as a tree of edit sequences: where each branches off, and how long each row is needed."""

    def __init__(self, plans: Sequence[Plan], n_layers: int) -> None:
        self.finals = [tuple((site, id(edit)) for site, edit in plan) for plan in plans]
        self.edits = {id(edit): edit for plan in plans for _, edit in plan}
        self.branches: dict[int, list[Node]] = {}
        self.needed: dict[Node, int] = dict.fromkeys(self.finals, n_layers)
        for final in self.finals:
            for depth in range(1, len(final) + 1):
                node, parent = final[:depth], final[: depth - 1]
                self.needed.setdefault(node, node[-1][0])
                at = self.branches.setdefault(node[-1][0], [])
                if node not in at:
                    at.append(node)
                if parent:
                    self.needed[parent] = max(self.needed.get(parent, 0), node[-1][0])


def _grow(rows: _Rows, tree: _Tree, stream: Float[Tensor, "batch pos d"], site: int) -> _Rows:
    """Add the rows edited at this site, and drop those that are no longer needed."""
    index: Mapping[Node, int] = {node: i for i, node in enumerate(rows.nodes)}
    nodes, values = list(rows.nodes), [rows.values]
    by_edit: dict[int, list[Node]] = {}
    for node in tree.branches.get(site, []):
        by_edit.setdefault(node[-1][1], []).append(node)
    for edit, grown in by_edit.items():
        sources = torch.stack([rows.values[index[n[:-1]]] if n[:-1] else stream for n in grown])
        values.append(tree.edits[edit](sources))
        nodes += grown
    keep = [i for i, node in enumerate(nodes) if tree.needed[node] > site or node in set(tree.finals)]
    joined = torch.cat(values)
    return _Rows([nodes[i] for i in keep], joined if len(keep) == len(nodes) else joined[keep])
