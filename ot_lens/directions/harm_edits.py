"""What edits do to refusal, to the answer when asked about harm, and to probes of harm."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.activations import Activations, capture
from ot_lens.behaviour import HarmQuestion, harm_score, refusal_score
from ot_lens.directions.harm_directions import Labelled, separation
from ot_lens.directions.harm_probes import Probe, reading
from ot_lens.interventions import Edits, everywhere, intervene
from ot_lens.prompts import CLASSES, Contrast
from ot_lens.statistics.estimates import mean, rate
from ot_lens.statistics.intervals import null_band
from ot_lens.statistics.resampling import ResamplingPlan
from ot_lens.tables import UNEDITED
from ot_lens.transport import AffineMap

ABLATE, ACE, ADD = "ablate", "ace", "add"
UNITS = {"refusal_score": "nats", "harm_score": "nats", "probe_log_odds": "log odds"}
# The share of prompts with a score above 0, by score.
SHARES = {"refusal_score": "refused", "harm_score": "named_harmful"}

Row = dict[str, Any]
Fitted = Mapping[str, Mapping[int, Labelled]]  # by name of the direction and layer
Scores = Mapping[tuple[str, str], Float64[np.ndarray, " prompt"]]  # by quantity and class


@dataclass(frozen=True)
class Edit:
    """An edit, and what the table says of it; `layer` is where it belongs."""

    about: Mapping[str, Any]
    edits: Edits
    tokens: str = "all"

    @property
    def layer(self) -> int:
        """The layer at or above which probes read it."""
        return int(self.about["layer"])


@dataclass(frozen=True)
class Reading:
    """What a model does under an edit: scores of each prompt, and its activations."""

    scores: Scores
    acts: Activations


@dataclass(frozen=True)
class Setting:
    """What is measured on which prompts, and the probes of harm by position and layer."""

    model: Any
    prompts: Contrast
    question: HarmQuestion | None
    refusal_tokens: Sequence[int]
    probes: Mapping[int | str, Mapping[int, Probe]]
    batch_size: int
    plan: ResamplingPlan

    def reading(self, edit: Edit, layers: Sequence[int]) -> Reading:
        """Everything under an edit, with activations of some layers."""
        size: dict[str, Any] = {"batch_size": self.batch_size}
        scores: dict[tuple[str, str], Float64[np.ndarray, " prompt"]] = {}
        with intervene(self.model, edit.edits, edit.tokens):
            acts = capture(self.model, self.prompts, layers=layers, positions=list(self.probes), **size)
            for label, group in self.prompts:
                refusal = refusal_score(self.model, group, tokens=self.refusal_tokens, **size)
                scores["refusal_score", label] = refusal.numpy()
                if self.question is not None:
                    scores["harm_score", label] = harm_score(self.model, group, self.question, **size).numpy()
        return Reading(scores, acts)

    def probe(self, position: int | str, layer: int) -> Probe:
        """The probe at a position that reads an edit at a layer."""
        return reading(self.probes[position], layer)

    @property
    def instruction_last(self) -> int | str:
        """The position at which harm is fitted."""
        return next(iter(self.probes))


def direction_edits(fitted: Fitted, layers: Sequence[int], n_layers: int) -> list[Edit]:
    """Each direction ablated everywhere, set to the other side's mean, and added; none where it is 0."""
    return [
        Edit({"direction": name, "action": action, "layer": layer}, edits)
        for name, by_layer in fitted.items()
        for layer in layers
        if bool(by_layer[layer].direction.any())
        for action, edits in _actions(by_layer[layer], by_layer[layer].direction, layer, n_layers).items()
    ]


def random_edits(
    fitted: Fitted, layers: Sequence[int], n_layers: int, draws: int, seed: int
) -> dict[tuple[str, str, int], list[Edit]]:
    """The same with random directions of the same length, by direction, action and layer."""
    first = next(iter(next(iter(fitted.values())).values()))
    generator = torch.Generator().manual_seed(seed + 3)
    units = torch.randn(draws, first.X.shape[1], dtype=torch.float64, generator=generator)
    units = units / units.norm(dim=1, keepdim=True)
    everywhere_alike = [Edit({"layer": 0}, _ablation(unit, n_layers)) for unit in units]
    found: dict[tuple[str, str, int], list[Edit]] = {}
    for name, by_layer in fitted.items():
        for layer in layers:
            length = by_layer[layer].direction.norm()
            drawn = [_actions(by_layer[layer], length * unit, layer, n_layers) for unit in units]
            found[name, ABLATE, layer] = everywhere_alike
            for action in (ACE, ADD):
                found[name, action, layer] = [Edit({"layer": layer}, own[action]) for own in drawn]
    return found


def _actions(part: Labelled, r: Float64[Tensor, " d"], layer: int, n_layers: int) -> dict[str, Edits]:
    empty = r.new_zeros(len(r), 0)
    unit = (r / r.norm()).unsqueeze(1)
    level = unit[:, 0] * (unit[:, 0] @ part.other_mean)
    return {
        ABLATE: _ablation(unit[:, 0], n_layers),
        ACE: {layer: AffineMap(-unit, unit, level)},
        ADD: {layer: AffineMap(empty, empty, r)},
    }


def _ablation(unit: Float64[Tensor, " d"], n_layers: int) -> Edits:
    column = unit.unsqueeze(1)
    return everywhere(AffineMap(-column, column, torch.zeros_like(unit)), range(n_layers))


def measured(
    setting: Setting,
    edits: Sequence[Edit],
    random: Mapping[tuple[str, str, int], Sequence[Edit]],
    others: Sequence[Edit],
    progress: Callable[[int], None],
) -> Iterator[Row]:
    """Effects of the directions, and the survival of the probes under every edit and without one."""
    sites = sorted({edit.layer for edit in (*edits, *others)})
    read_at = sorted({setting.probe(at, layer).layer for at in setting.probes for layer in sites})
    if not sites:
        return
    known: dict[int, Reading] = {}

    def read(edit: Edit) -> Reading:
        """Once for each edit: the ablations of random directions serve every layer."""
        if id(edit) not in known:
            known[id(edit)] = setting.reading(edit, read_at)
            progress(1)
        return known[id(edit)]

    plain = read(Edit({"layer": 0}, {}))
    yield from _behaviour({"method": UNEDITED}, plain, ())
    for at in setting.probes:
        for layer in sorted({setting.probe(at, site).layer for site in sites}):
            yield _survival(setting, {"method": UNEDITED}, setting.probes[at][layer], plain)
    for edit in (*edits, *others):
        kind = str(edit.about.get("direction")), str(edit.about.get("action")), edit.layer
        drawn = random.get(kind, ())
        null = [read(one) for one in drawn]
        yield from _behaviour(edit.about, read(edit), null)
        yield from _effects(setting, edit, plain, read(edit), null)
        for at in setting.probes:
            yield _survival(setting, edit.about, setting.probe(at, edit.layer), read(edit))


def _behaviour(about: Mapping[str, Any], read: Reading, null: Sequence[Reading]) -> Iterator[Row]:
    """The shares of prompts that are refused, and called harmful when asked: scores above 0."""
    for key, values in read.scores.items():
        quantity = {"part": "behaviour", "quantity": SHARES[key[0]], "prompts": key[1], "unit": "share"}
        band = _band([float((other.scores[key] > 0).mean()) for other in null])
        yield {**about, **quantity, **vars(rate((values > 0).tolist())), **band}


def _effects(
    setting: Setting, edit: Edit, plain: Reading, edited: Reading, null: Sequence[Reading]
) -> Iterator[Row]:
    """Mean changes of the scores, and of the probe that reads the edit."""
    probe = setting.probe(setting.instruction_last, edit.layer)
    before, after, *drawn = (_scores(probe, read) for read in (plain, edited, *null))
    for key, values in after.items():
        start = before[key]
        quantity: Row = {"part": "effect", "quantity": key[0], "prompts": key[1], "unit": UNITS[key[0]]}
        if key[0] == "probe_log_odds":
            quantity |= {"probe_layer": probe.layer, "position": probe.position}
        band = _band([float((other[key] - start).mean()) for other in drawn])
        yield {**edit.about, **quantity, **vars(mean(values - start, seed=setting.plan.seed)), **band}


def _band(null: Sequence[float]) -> Row:
    """What the same edits with random directions give."""
    return {**null_band(torch.tensor(null, dtype=torch.float64)), "draws": len(null) or None}


def _scores(probe: Probe, read: Reading) -> Scores:
    """The scores of a reading, and the log odds of a probe."""
    probed = {("probe_log_odds", label): probe.scores(read.acts, label).numpy() for label in CLASSES}
    return {**read.scores, **probed}


def _survival(setting: Setting, about: Mapping[str, Any], probe: Probe, read: Reading) -> Row:
    """How well a probe that was trained on the unedited model tells the classes apart under an edit."""
    scores = [probe.scores(read.acts, label) for label in CLASSES]
    flags = torch.cat([torch.full((len(own),), fill_value=i == 0) for i, own in enumerate(scores)])
    found = separation(torch.cat(scores), flags, setting.plan)
    place = {"position": probe.position, "probe_layer": probe.layer}
    return {"part": "survival", **about, "quantity": "auc", "unit": "AUC", **place, **found}
