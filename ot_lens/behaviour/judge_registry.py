"""Judges as a configuration names them: registered by name, loaded on first use, moved aside if needed."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ot_lens.behaviour.classifier import ClassifierJudge
from ot_lens.behaviour.judges import Judge
from ot_lens.behaviour.yes_no import YesNoJudge, judge_presets, preset_settings
from ot_lens.errors import JudgeError, ModelError
from ot_lens.io.untrusted import quoted
from ot_lens.models import load_model

KINDS = ("preset", "classifier", "yes_no")
LOADING = ("dtype", "device", "device_map", "quantization", "revision")
CPU = torch.device("cpu")
_REGISTERED: dict[str, Callable[..., Judge]] = {}


def register_judge(name: str, factory: Callable[..., Judge]) -> None:
    """Make a judge available by name: `localize(..., judge=name)`, or `judge: name` in a configuration.

    A name registered again is replaced. Register it in an importable module to use it from a configuration
    (`extensions: [my_package.my_judges]`) or on a cluster.

    Args:
        name: The name; not one of `judge_presets`.
        factory: Called once per process, when the judge is first needed, with the options of a configuration
            (`judge: {preset: name, option: value}`); returns the judge (see `Judge`).

    Raises:
        JudgeError: If the name is empty or taken by a preset.
    """
    if not name or name in judge_presets():
        raise JudgeError(f"The judge name {name!r} is empty or taken by a preset: choose another.")
    _REGISTERED[name] = factory


def judge_names() -> list[str]:
    """Names that `judge: NAME` accepts: the presets, then registered judges."""
    return [*judge_presets(), *_REGISTERED]


class LazyJudge:
    """A judge that loads its model when first called, once.

    It is described by JSON values: a preset of `YesNoJudge` or a name given to `register_judge`; or a mapping
    with one of the keys "preset" (such a name; "model" for another location), "classifier" (a folder or hub
    name, with "label" and "question") or "yes_no" (likewise, with "template" and "question"), and further
    arguments of the factory, `ClassifierJudge` or `YesNoJudge`.
    """

    def __init__(self, description: str | Mapping[str, Any]) -> None:
        """Check what can be checked without loading; raises a JudgeError."""
        self.description = {"preset": description} if isinstance(description, str) else dict(description)
        kinds = [kind for kind in KINDS if kind in self.description]
        if len(kinds) != 1:
            raise JudgeError(
                f"judge = {quoted(description)}: give a name ({', '.join(judge_names())}), or a mapping with "
                f"one of the keys {', '.join(KINDS)}."
            )
        self._kind, name = kinds[0], self.description[kinds[0]]
        if not isinstance(name, str | os.PathLike):
            raise JudgeError(
                f"judge = {quoted(description)}: {self._kind} is a name or a folder, not {quoted(name)}."
            )
        self._factory = _factory(self._kind, name)
        self._judge: Judge | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process loads its own judge."""
        return {**self.__dict__, "_judge": None}

    @property
    def model_name(self) -> str | None:
        """Hub name or folder of the judge's model, as described; None for a registered judge."""
        name = self.description[self._kind]
        if self._kind != "preset":
            return str(name)
        default = preset_settings(name)["model"] if name in judge_presets() else None
        return str(self.description["model"]) if "model" in self.description else default

    @property
    def loaded(self) -> Judge:
        """The judge itself."""
        if self._judge is None:
            options = {key: value for key, value in self.description.items() if key != self._kind}
            try:
                self._judge = self._factory(**options)
            except TypeError as error:
                raise JudgeError(f"judge = {quoted(self.description)}: {error}.") from error
        return self._judge

    @contextmanager
    def in_place_of(self, model: nn.Module, *, swap: bool) -> Iterator[Judge]:
        """The loaded judge; with `swap` in the model's place on its device, the model in main memory."""
        device = _movable(model) if swap else CPU
        if device == CPU:
            yield self.loaded
            return
        model.to(CPU)
        judging = network(self.loaded)
        _movable(judging)
        try:
            judging.to(device)
            yield self.loaded
        finally:
            judging.to(CPU)
            model.to(device)


def network(judge: Judge) -> nn.Module:
    """The network behind a judge: its attribute `network`."""
    module = getattr(judge, "network", None)
    if not isinstance(module, nn.Module):
        raise JudgeError(f"{type(judge).__name__} has no `network` to move: use judge_memory 'together'.")
    return module


def _factory(kind: str, name: Any) -> Callable[..., Judge]:
    if kind == "classifier":
        return partial(ClassifierJudge, name)
    if kind == "yes_no":
        return partial(_yes_no, name)
    if name in judge_presets():
        return partial(_preset, name)
    if name not in _REGISTERED:
        raise JudgeError(
            f"There is no judge {quoted(name)}: choose one of {', '.join(judge_names())}, or write "
            "judge: {classifier: FOLDER, label: LABEL, question: harmful}."
        )
    return _REGISTERED[name]


def _yes_no(name: str, **options: Any) -> Judge:
    loading = {key: options.pop(key) for key in LOADING if key in options}
    return YesNoJudge(load_model(name, **loading), **options)


def _preset(name: str, *, model: Any = None, batch_size: int = 8, **loading: Any) -> Judge:
    unknown = [key for key in loading if key not in LOADING]
    if unknown:
        raise JudgeError(
            f"The judge {name} has no option {unknown[0]!r}: it has model, batch_size, {LOADING}."
        )
    if loading:
        model = load_model(model or preset_settings(name)["model"], **loading)
    return YesNoJudge.preset(name, model, batch_size=batch_size)


def _movable(model: nn.Module) -> torch.device:
    inner = getattr(model, "hf_model", model)
    spread = len(set(getattr(inner, "hf_device_map", {}).values())) > 1
    if spread or getattr(inner, "is_quantized", False):
        raise ModelError(
            "judge_memory = 'swap' cannot move a quantized model or one spread over devices to main memory "
            "and back: use 'together', or a smaller judge."
        )
    return next(model.parameters()).device
