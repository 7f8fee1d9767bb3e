"""A judge as a configuration names it: loaded when it is first asked, and out of the way if need be."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ot_lens.behaviour.classifier import ClassifierJudge
from ot_lens.behaviour.judges import Judge, Verdict
from ot_lens.behaviour.yes_no import YesNoJudge, judge_presets
from ot_lens.errors import JudgeError, ModelError
from ot_lens.generation import Completion
from ot_lens.models import load_model
from ot_lens.prompts import Prompt

KINDS = ("preset", "classifier", "yes_no")
LOADING = ("dtype", "device", "device_map", "quantization", "revision")
CPU = torch.device("cpu")


class LazyJudge:
    """A judge that loads its model at its first question, once.

    Attributes:
        description: What it was made from, JSON values only.
    """

    def __init__(self, description: str | Mapping[str, Any]) -> None:
        """Check what can be checked without loading.

        Args:
            description: Name of a preset of `YesNoJudge`; or a mapping with one of the keys "preset" (its
                name; "model" for another place), "classifier" (a folder or hub name, with "label" and
                "question") or "yes_no" (likewise, with "template" and "question"), and further arguments of
                `YesNoJudge.preset`, `ClassifierJudge` or `YesNoJudge`.

        Raises:
            JudgeError: If the description is of none of these forms.
        """
        given = {"preset": description} if isinstance(description, str) else dict(description)
        kinds = [kind for kind in KINDS if kind in given]
        if len(kinds) != 1:
            raise JudgeError(
                f"judge = {description!r}: give a preset ({', '.join(judge_presets())}), or a mapping with "
                f"one of the keys {', '.join(KINDS)}."
            )
        self.description, self._kind = given, kinds[0]
        if self._kind == "preset" and given["preset"] not in judge_presets():
            raise JudgeError(
                f"no judge preset {given['preset']!r}: choose one of {', '.join(judge_presets())}, or write "
                "judge: {classifier: FOLDER, label: LABEL, question: harmful}."
            )
        self._judge: Judge | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process loads its own."""
        return {**self.__dict__, "_judge": None}

    @property
    def name(self) -> str:
        """Name of the judge."""
        return self.loaded.name

    @property
    def version(self) -> str:
        """Version of the judge."""
        return self.loaded.version

    @property
    def question(self) -> str:
        """What a yes means: "refused" or "harmful"."""
        return self.loaded.question

    @property
    def loaded(self) -> Judge:
        """The judge itself.

        Raises:
            ModelError: If its model cannot be loaded.
            JudgeError: If the description does not fit it.
        """
        if self._judge is None:
            self._judge = _load(self._kind, self.description)
        return self._judge

    def __call__(
        self, prompts: Sequence[Prompt | str], completions: Sequence[str | Completion]
    ) -> Sequence[Verdict | bool | None]:
        """One verdict a completion."""
        return self.loaded(prompts, completions)

    def make_ready(self, model: nn.Module, *, swap: bool) -> None:
        """Load the judge now, so that what is wrong with it is known before anything is measured.

        Raises:
            ModelError: If its model cannot be loaded, or with `swap` one of the two cannot be moved.
            JudgeError: If the description does not fit it.
        """
        with self.instead_of(model) if swap else nullcontext():
            _ = self.loaded

    @contextmanager
    def instead_of(self, model: nn.Module) -> Iterator[None]:
        """Take a model's place on its device: the model waits in main memory, and afterwards the judge does.

        Raises:
            ModelError: If one of the two cannot be moved, as a quantized model or one spread over devices.
        """
        device = _movable(model)
        if device.type == "cpu":
            yield
            return
        model.to(CPU)
        judging = network(self.loaded)
        _movable(judging)
        try:
            judging.to(device)
            yield
        finally:
            judging.to(CPU)
            model.to(device)


def network(judge: Judge) -> nn.Module:
    """The network behind a classifier or a yes-or-no judge.

    Raises:
        JudgeError: If it is of neither kind.
    """
    if isinstance(judge, ClassifierJudge | YesNoJudge):
        return judge.network
    raise JudgeError(
        f"{type(judge).__name__} has no network that could be moved: use judge_memory 'together'."
    )


def _load(kind: str, description: Mapping[str, Any]) -> Judge:
    options = dict(description)
    name = options.pop(kind)
    try:
        if kind == "classifier":
            return ClassifierJudge(name, **options)
        loading = {key: options.pop(key) for key in LOADING if key in options}
        if kind == "yes_no":
            return YesNoJudge(load_model(name, **loading), **options)
        if loading:
            options["model"] = load_model(options.get("model") or YesNoJudge.preset_model(name), **loading)
        return YesNoJudge.preset(name, **options)
    except TypeError as error:
        raise JudgeError(f"judge = {dict(description)}: {error}.") from error


def _movable(model: nn.Module) -> torch.device:
    inner = getattr(model, "hf_model", model)
    spread = len(set(getattr(inner, "hf_device_map", {}).values())) > 1
    if spread or getattr(inner, "is_quantized", False):
        raise ModelError(
            "judge_memory = 'swap' moves the model and the judge to main memory and back, which a quantized "
            "model and one spread over devices do not bear: use 'together', or a smaller judge."
        )
    return next(model.parameters()).device
