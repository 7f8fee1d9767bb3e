"""Whether the hook points of a model are what their names say: the parts of the stream must add up."""

from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from ot_lens.errors import HookError, ModelError
from ot_lens.io.untrusted import abbreviated
from ot_lens.linalg import float64
from ot_lens.models.architectures import REFUSED, hook_name
from ot_lens.models.hooked import HOOKS
from ot_lens.models.reversible import Reversible, evaluating

INSIDE = ("attn_out", "resid_mid", "mlp_out")
# Of a block as a whole: resid_pre and all its branches give resid_post.
WHOLE = "whole"
# Tokens of the short sequence.
LENGTH = 6
# Errors of a sum that rounding explains: relative to the branch, and in roundings of the stream.
OF_BRANCH = {torch.float64: 1e-6, torch.float32: 1e-3}
OF_BRANCH_IN_HALF, ROUNDINGS = 2e-2, 8.0
# Differences of logits that the rounding of another batch explains, relative to the largest logit.
OF_LOGITS, OF_LOGITS_IN_HALF = {torch.float64: 1e-6, torch.float32: 1e-3}, 0.2

Parts = dict[str, Float[Tensor, "..."]]


@dataclass(frozen=True)
class Inspection:
    """What a short sequence shows of a model."""

    faults: list[dict[str, str]]  # of each layer's hook points, and of their sum; empty where there is none
    causal: bool  # whether a token leaves the logits of those before it as they are
    pads: bool  # whether padding on the left leaves the logits as they are, with a cache too
    counts: bool  # whether the model counts positions as ot_lens does, from 0
    continues: bool  # whether a cache leaves the logits as they are


_INSPECTED: "WeakKeyDictionary[nn.Module, Inspection]" = WeakKeyDictionary()


def check_stream(served: Any) -> None:
    """Run a short sequence through a model, every layer of which must take and return the residual stream.

    Its tokens must not see later ones: the stream of a prompt would depend on the answer behind it.
    """
    refused = REFUSED.get(getattr(getattr(served.hf_model, "config", None), "model_type", ""))
    if refused is not None:
        raise ModelError(
            f"Cannot serve a {_name(served)}: {refused}. docs/models.md lists the families that are served."
        )
    try:
        inspection = inspected(served)
    except Exception as error:
        raise ModelError(
            f"Cannot serve a {_name(served)}: it fails on a short sequence ({type(error).__name__}: "
            f"{abbreviated(error)}). docs/models.md lists the families that are served."
        ) from error
    for layer, reasons in enumerate(inspection.faults):
        for hook in ("resid_pre", "resid_post"):
            if reasons[hook]:
                raise ModelError(
                    f"Cannot serve a {_name(served)}: its layers do not hand on one residual stream [batch, "
                    f"pos, d_model] ({hook} of layer {layer}: {reasons[hook]}). docs/models.md lists the "
                    "families that are served."
                )
    if not inspection.causal:
        raise ModelError(
            f"Cannot serve a {_name(served)}: its tokens attend to later ones, so that it is not a causal "
            "language model. docs/models.md lists the families that are served."
        )
    if not inspection.counts:
        raise ModelError(
            f"Cannot serve a {_name(served)}: it does not count positions from 0, so that padding would "
            "shift its prompts. docs/models.md lists the families that are served."
        )
    if not inspection.continues:
        raise ModelError(
            f"Cannot serve a {_name(served)}: with its cache it continues a short sequence otherwise than it "
            "reads it without one. If it was loaded with hooks='full', transformer-lens may not know the "
            "cache of this version of transformers: use hooks='residual'."
        )


def check_once(served: Any) -> None:
    """`check_stream` of a model that the user may have made, unless hooks at work on it change its logits."""
    points = served.model.hook_dict.values()
    if served.model in _INSPECTED or not any(getattr(point, "fwd_hooks", ()) for point in points):
        check_stream(served)


def check_sums(served: Any, layer: int, hook: str) -> None:
    """Refuse a hook point inside a block unless resid_pre + attn_out = resid_mid, + mlp_out = resid_post."""
    reason = inspected(served).faults[layer][hook]
    if reason:
        raise HookError(
            f"{hook} of layer {layer} is not what a {_name(served)} adds to the stream ({reason}): use "
            "resid_pre or resid_post, or, if this model was loaded with hooks='full', hooks='residual'."
        )


def addends(served: Any, layer: int) -> tuple[str, ...]:
    """The hook points of a block whose parts, added to resid_pre, are resid_post; () if none are known."""
    faults = inspected(served).faults[layer]
    return () if faults[WHOLE] else tuple(h for h in ("attn_out", "mlp_out") if not faults[h])


def allowed_error(dtype: torch.dtype, branches: Tensor, stream: Tensor) -> Tensor:
    """The error of a sum that rounding explains: relative to the branches, and in roundings of the stream."""
    relative = OF_BRANCH.get(dtype, OF_BRANCH_IN_HALF)
    return relative * branches + ROUNDINGS * torch.finfo(dtype).eps * stream


def inspected(served: Any) -> Inspection:
    """What a short sequence shows of a model, which reads it once."""
    if served.model not in _INSPECTED:
        read: list[Parts] = [{} for _ in range(served.n_layers)]
        begun = torch.arange(3, 3 + 7 * (LENGTH - 1), 7, device=served.device).remainder(served.d_vocab)
        padded, mask = torch.cat([begun[:2], begun])[None], torch.ones(2, LENGTH, dtype=torch.long)
        mask = mask.to(served.device)
        with evaluating(served.model):
            token, steps = served.two_steps(padded, torch.cat([0 * mask[:1, :2], mask[:1, 1:]], dim=1))
            # Two rows that differ in their last token: the logits before it must be the same.
            ends = torch.stack([token, (token + 1).remainder(served.d_vocab)]).to(begun.device)
            tokens = torch.cat([begun.expand(2, -1), ends[:, None]], dim=1)
            with Reversible(partial(_listen, served, read)):
                whole = served.logits(tokens, mask, keep=2)
            own = served.unpadded_logits(tokens[:1])
            pads = all(_alike(steps[i], whole[0, i - 2]) for i in range(2))
            continues = pads or _continues(served, begun[None])
        _INSPECTED[served.model] = Inspection(
            [_judged(parts, (LENGTH, served.d_model)) for parts in read],
            causal=_alike(whole[1, -2], whole[0, -2]),
            pads=pads,
            counts=_alike(own[0, -1], whole[0, -1]),
            continues=continues,
        )
    return _INSPECTED[served.model]


def _continues(served: Any, tokens: Int[Tensor, "1 pos"]) -> bool:
    """Whether two steps with a cache have the logits of all tokens read at once, without any padding."""
    token, steps = served.two_steps(tokens, torch.ones_like(tokens))
    read = served.unpadded_logits(torch.cat([tokens, token[None, None]], dim=1))
    # Whatever the dtype of the logits, weights may be quantized: a cache that is lost changes more.
    return all(_alike(steps[i], read[0, i - 2], OF_LOGITS_IN_HALF) for i in range(2))


def _alike(
    logits: Float[Tensor, " d_vocab"], expected: Float[Tensor, " d_vocab"], share: float | None = None
) -> bool:
    """Whether rounding explains a difference; NaN, which every measure names, is no difference."""
    share = OF_LOGITS.get(expected.dtype, OF_LOGITS_IN_HALF) if share is None else share
    return not bool((logits - expected).abs().max() > share * expected.abs().max())


def _listen(served: Any, read: list[Parts], changes: Reversible[None]) -> None:
    for layer, parts in enumerate(read):
        for hook in HOOKS:
            point = served.model.hook_dict.get(hook_name(served.model.hook_dict, layer, hook))
            if isinstance(point, HookPoint):
                changes.edit(point, partial(_note, parts, hook))


def _note(parts: Parts, name: str, x: Any, hook: Any) -> None:  # noqa: ARG001  TransformerLens passes it by name
    if isinstance(x, Tensor):
        # A copy: a layer may change its own output afterwards.
        parts[name] = x.detach()[0].cpu().clone()


def _judged(parts: Parts, shape: tuple[int, int]) -> dict[str, str]:
    """What is wrong with each hook point; empty if nothing is."""
    faults = {hook: _shape_fault(parts.get(hook), shape) for hook in HOOKS}
    if faults["resid_pre"] or faults["resid_post"]:
        return faults | {WHOLE: faults["resid_pre"] or faults["resid_post"]}
    sound = {hook: parts[hook] for hook in HOOKS if not faults[hook]}
    before = _gap(sound, ("resid_pre", "attn_out"), "resid_mid")
    after = _gap(sound, ("resid_mid", "mlp_out"), "resid_post")
    # Branches in parallel have no stream between them, and a block may have only one.
    added = [hook for hook in ("attn_out", "mlp_out") if hook in sound]
    whole = _gap(sound, ("resid_pre", *added), "resid_post")
    for hook, gap in (
        ("attn_out", before and whole),
        ("resid_mid", before and after),
        ("mlp_out", after and whole),
    ):
        faults[hook] = faults[hook] or gap
    return faults | {WHOLE: whole}


def _shape_fault(x: Tensor | None, shape: tuple[int, int]) -> str:
    if x is None:
        return "nothing of that name passes"
    return "" if x.shape == shape else f"its shape is {list(x.shape)}, not [pos, d_model]"


def _gap(parts: Parts, terms: tuple[str, ...], total: str) -> str:
    """By how much the terms miss their sum; empty if rounding explains it."""
    absent = [hook for hook in (*terms, total) if hook not in parts]
    if absent:
        return f"there is no {absent[0]}"
    if len(terms) == 1:
        return "there is no branch"
    stream, *branches = (float64(parts[hook]) for hook in terms)
    expected, dtype = float64(parts[total]), parts[total].dtype
    added = torch.stack(branches).norm(dim=-1).amax(0)
    error = (stream + torch.stack(branches).sum(0) - expected).norm(dim=-1)
    allowed = allowed_error(dtype, added, torch.maximum(stream.norm(dim=-1), expected.norm(dim=-1)))
    # A sequence that overflows compares as false: every measure names it.
    if not bool((error > allowed).any()):
        return ""
    return f"{' + '.join(terms)} misses {total} by {float((error / added).max()):.0%}"


def _name(served: Any) -> str:
    return type(served.hf_model or served.model).__name__
