"""Maps in hooks on a model, for as long as a `with` block lasts."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from ot_lens.errors import HookError, OtLensTypeError, one_of
from ot_lens.models import ActiveFlag, Backend, Call, Reversible, backend, claim, release
from ot_lens.transport import ActivationMap

TOKEN_SCOPES = ("all", "prompt", "last", "generated")

Site = int | tuple[int, str]


@dataclass(frozen=True, eq=False)
class RowMaps:
    """Maps of some rows of a batch each, at some positions, so that one batch holds many candidates."""

    parts: "tuple[tuple[Int[Tensor, ' rows'], AppliedMap], ...]"
    positions: slice = field(default_factory=lambda: slice(None))

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.parts[0][1].d_model

    @property
    def is_identity(self) -> bool:
        """Whether no row is moved."""
        return all(edit.is_identity for _, edit in self.parts)

    def to(self, *args: Any, **kwargs: Any) -> "RowMaps":
        """The same on a device or in a dtype (see `AffineMap.to`)."""
        return replace(self, parts=tuple((rows, edit.to(*args, **kwargs)) for rows, edit in self.parts))

    def __call__(self, x: Float[Tensor, "batch *pos d"]) -> Float[Tensor, "batch *pos d"]:
        """Every row moved by its own map."""
        edited = x.clone()
        for rows, edit in self.parts:
            own = rows.to(x.device)
            edited[own, self.positions] = edit(x[own, self.positions])
        return edited


# What can be applied in a model.
AppliedMap = ActivationMap | RowMaps
# Mapping is invariant in its key, and plain {layer: map} is the common case.
Edits = Mapping[int, AppliedMap] | Mapping[tuple[int, str], AppliedMap] | Mapping[Site, AppliedMap]


def intervene(
    model: Any,
    edits: Edits,
    tokens: str = "all",
    *,
    hook: str = "resid_pre",
    prompt_length: int | None = None,
) -> AbstractContextManager[Any]:
    """Edit the residual stream inside a `with` block: x -> T(x) at each site.

    Inside the block any forward or generate call on the model is edited, with or without a KV cache, from
    any thread. The weights, the training mode and the user's own hooks stay as they are (those hooks run
    before these), and the model is restored when the block is left, also by an exception or an interrupt. A
    copy of the model made inside is edited as long as the block lasts.

    Blocks may be nested and left in any order: each removes its own edits. A handle may be entered again
    after it was left.

    Args:
        model: A hooked model.
        edits: Maps by layer, or by (layer, hook) where a site is not at `hook`.
        tokens: Which positions: "all"; "prompt", the prompt's; "last", the last real token of the prompt;
            "generated", those after it.
        hook: Hook point of the sites that are given by layer alone.
        prompt_length: Columns of the sequences that belong to the prompt, padding included. Needed where a
            call without cache holds a prompt and an answer, and where a prompt is read in several calls
            (transformers' `prefill_chunk_size`, a cache of its beginning). Otherwise it follows from the
            calls: the first is the prompt, and one that adds a single token to the one before, with or
            without a cache, is the next step of its generation.

    Returns:
        A context manager; `as` names the model.

    Raises:
        HookError: If a layer, hook point or scope does not exist, or cannot be edited; on entry, if an
            intervention of another thread, or this one, is active on the model; inside, for every
            scope but "all", from a call whose prompt tokens cannot be identified.
        OtLensTypeError: If an edit is not a map of ot_lens.
    """
    one_of("token scope", tokens, TOKEN_SCOPES, HookError)
    if prompt_length is not None and prompt_length < 1:
        raise HookError(f"prompt_length = {prompt_length}: a prompt has at least one token.")
    served = backend(model)
    points = [_site(served, site, edit, hook) for site, edit in edits.items()]

    def put(changes: Reversible[Any]) -> Any:
        if not points:
            return model
        scope, flag = _Scope(tokens, prompt_length), ActiveFlag()
        changes.change(partial(release, served.model, flag), partial(claim, served.model, flag))
        if tokens != "all":
            served.watch(scope.observe, changes)
        for point, edit in points:
            changes.edit(point, _Edit(edit, scope, flag))
        changes.change(flag.off, flag.on)
        return model

    return Reversible(put)


def everywhere(edit: AppliedMap, layers: Sequence[int]) -> dict[Site, AppliedMap]:
    """One map at every block's input, attention output and MLP output, as Arditi ablates a direction.

    Args:
        edit: The map, a projection for RFA (Arditi et al. 2024, arXiv 2406.11717, section 2.4).
        layers: The layers to edit.

    Returns:
        Edits for `intervene`.
    """
    return {(layer, hook): edit for layer in layers for hook in ("resid_pre", "attn_out", "mlp_out")}


def _site(served: Backend, site: Site, edit: AppliedMap, hook: str) -> tuple[HookPoint, AppliedMap]:
    layer, name = site if isinstance(site, tuple) else (site, hook)
    if not isinstance(edit, AppliedMap):
        raise OtLensTypeError(
            f"The edit at layer {layer} is a {type(edit).__name__}: pass a map of ot_lens, such as an "
            "AffineMap."
        )
    point = served.hook_point(layer, name)
    if name == "resid_mid" and not served.edits_resid_mid:
        raise HookError(
            "In this model resid_mid is the MLP's input only, so an edit there would not reach the skip "
            "connection: edit resid_pre or resid_post."
        )
    if edit.d_model != served.d_model:
        raise HookError(
            f"The map for layer {layer} has width {edit.d_model}, the model {served.d_model}: "
            "fit it on this model's activations."
        )
    return point, edit


class _Scope(threading.local):
    """Tracks each thread's forward calls and which positions of the current one are in scope."""

    def __init__(self, tokens: str, prompt_length: int | None) -> None:
        self.tokens = tokens
        self._fixed = prompt_length
        self._width: int | None = prompt_length
        self._past = 0
        self._mask: Int[Tensor, "batch total"] | None = None
        self._before: Int[Tensor, "batch pos"] | None = None
        self._found: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._observed = False
        self._is_known = False
        self._unseen = False

    def observe(self, call: Call | None) -> None:
        """Record a call that is about to run, or (None) that it has ended."""
        self._observed = call is not None
        if call is None:
            return
        new = call.tokens.shape[1] if call.tokens is not None else None
        announced = call.prompt_width if self._fixed is None else self._fixed
        self._is_known = announced is not None or call.past == 0
        if announced is not None:
            self._width = announced
        elif not self._continues(call):
            self._width = new  # with a cache: one token beyond that width, part of the answer
        self._past, self._mask = call.past, call.mask
        self._found = {}
        # The caller may write into its tensor between steps, so a copy is kept.
        self._before = call.tokens.clone() if call.tokens is not None and call.past == 0 else None

    def check(self, new: int) -> None:
        """Check that this call was tracked from its start, and that its columns are prompt or answer."""
        if not self._observed:
            raise HookError(
                f"Scope {self.tokens!r} must see a forward call from its start, and a block was called by "
                "itself, from another thread, or in a graph that was compiled before: call the model itself, "
                "compile it by `model.forward = torch.compile(model.forward)`, or use scope 'all'."
            )
        if new > 1 and not self._is_known:
            raise HookError(
                f"Scope {self.tokens!r} cannot tell whether {new} tokens that are added to a cache of "
                f"{self._past} are still the prompt's, read in several calls, or the answer's: pass "
                "prompt_length."
            )

    def _continues(self, call: Call) -> bool:
        before, now = self._before, call.tokens
        if before is None or now is None or now.shape != (before.shape[0], before.shape[1] + 1):
            return False
        return bool(torch.equal(now[:, :-1], before))

    def columns(self, new: int) -> slice:
        """The columns, among the `new` ones of this call, that scope "prompt" or "generated" covers."""
        width = new if self._width is None else self._width
        border = min(max(width - self._past, 0), new)
        return slice(0, border) if self.tokens == "prompt" else slice(border, new)

    @property
    def is_past(self) -> bool:
        """Whether the whole prompt lies before this call, so that its last token cannot be in it."""
        return self._width is not None and self._past >= self._width

    def last(self, x: Float[Tensor, "batch new d"]) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """Each row's column of the last real prompt token in this call, and whether it is in this call."""
        if x.device not in self._found:
            self._found[x.device] = self._last(x)
        return self._found[x.device]

    def _last(self, x: Float[Tensor, "batch new d"]) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
        width = x.shape[1] if self._width is None else self._width
        # Columns beyond the mask count as real tokens, unless a longer mask contradicts it later.
        column = torch.full((x.shape[0],), width - 1, device=x.device)
        reaches = self._mask is not None and self._mask.ndim == 2 and self._mask.shape[1] >= width
        if self._mask is not None and reaches:
            real = self._mask[:, :width].to(x.device).bool()
            column = width - 1 - real.flip(1).int().argmax(1)
            self._check_seen(column)
        self._unseen = not reaches
        column = column - self._past
        inside = (column >= 0) & (column < x.shape[1])
        return column.clamp(0, x.shape[1] - 1), inside

    def _check_seen(self, column: Int[Tensor, " batch"]) -> None:
        if self._unseen and bool((column < self._past).any()):
            raise HookError(
                "The last real token of a prompt was read by an earlier call, whose mask was too short to "
                "show it: pad on the left, pass the mask of the whole prompt in each call, or read it "
                "in one call."
            )


class _Edit:
    """The hook function of one site."""

    def __init__(self, edit: AppliedMap, scope: _Scope, flag: ActiveFlag) -> None:
        self._edit = edit
        self._scope = scope
        self._flag = flag
        self._prepared_maps: dict[tuple[torch.device, torch.dtype, bool], AppliedMap] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Edit":
        return self  # a copied model shares the flag, so its edit ends with the block

    def __call__(
        self,
        x: Float[Tensor, "batch new d"],
        hook: Any,  # noqa: ARG002  TransformerLens passes it by name
    ) -> Float[Tensor, "batch new d"] | None:
        if not self._flag.is_on:
            return None
        edit = self._prepared(x)
        if not torch.is_autocast_enabled(x.device.type):
            return self._edited(edit, x)
        # The map computes in float32 at least; autocast would take its products to half precision.
        with torch.autocast(x.device.type, enabled=False):
            return self._edited(edit, x)

    def _edited(
        self, edit: AppliedMap, x: Float[Tensor, "batch new d"]
    ) -> Float[Tensor, "batch new d"] | None:
        if self._scope.tokens == "all":
            return edit(x)
        self._scope.check(x.shape[1])
        if self._scope.tokens == "last":
            return self._at_last(edit, x)
        columns = self._scope.columns(x.shape[1])
        if columns.start >= columns.stop:
            return None
        return torch.cat([x[:, : columns.start], edit(x[:, columns]), x[:, columns.stop :]], dim=1)

    def _at_last(
        self, edit: AppliedMap, x: Float[Tensor, "batch new d"]
    ) -> Float[Tensor, "batch new d"] | None:
        if self._scope.is_past:
            return None
        columns, inside = self._scope.last(x)
        rows = torch.arange(x.shape[0], device=x.device)
        # torch.where, since an index by `inside` would synchronize with the device at every layer.
        chosen = x[rows, columns]
        edited = x.clone()
        edited[rows, columns] = torch.where(inside[:, None], edit(chosen), chosen)
        return edited

    def _prepared(self, x: Float[Tensor, "batch new d"]) -> AppliedMap:
        """The map on the activation's device, in the dtype of the computation; cached for the next call."""
        dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        # Tensors made in inference mode cannot be used in a call with gradients.
        key = x.device, dtype, torch.is_inference_mode_enabled()
        if key not in self._prepared_maps:
            self._prepared_maps[key] = self._edit.to(device=x.device, dtype=dtype)
        return self._prepared_maps[key]
