"""`interchange`: how far a prompt's answer follows another prompt's activations, over layers and tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.errors import PromptError, one_of
from ot_lens.patching.partners import Numbers, others, own_class
from ot_lens.patching.positions import Positions
from ot_lens.patching.prepared import Patching
from ot_lens.patching.sweep import AUTO, Progress, Replacement
from ot_lens.patching.table import cells
from ot_lens.patching.tails import BLOCK, HOOK_OF, MODULES, STREAM_IN
from ot_lens.progress import Stage, silent
from ot_lens.prompts import CLASSES, Contrast, ContrastSet

INTERCHANGE, KNOCK_OUT = "interchange", "knock_out"
KINDS = (INTERCHANGE, KNOCK_OUT)
NOTHING, MEAN = "nothing", "mean"
LEFT = (NOTHING, MEAN)
OTHER = {CLASSES[0]: CLASSES[1], CLASSES[1]: CLASSES[0]}


@dataclass(frozen=True)
class Settings:
    """What is replaced by what; see `interchange`."""

    modules: tuple[str, ...] = (BLOCK,)
    kinds: tuple[str, ...] = (INTERCHANGE,)
    classes: tuple[str, ...] = CLASSES
    partners: str | tuple[int, ...] = "random"
    draws: int = 1
    null_draws: int = 1
    leaving: str = NOTHING
    seed: int = 0
    engine: str = AUTO

    def __post_init__(self) -> None:
        """Raise a PromptError for an option that does not exist."""
        allowed = {"module": MODULES, "kind": KINDS, "class": CLASSES}
        for what, names in zip(allowed, (self.modules, self.kinds, self.classes), strict=True):
            for name in names or ("",):
                one_of(what, name, allowed[what], PromptError)
        one_of("way of leaving out", self.leaving, LEFT, PromptError)
        if self.null_draws < 0:
            raise PromptError(f"null_draws must be at least 0, got {self.null_draws}.")

    @property
    def jobs(self) -> list[tuple[str, str, str]]:
        """Kind, module and class of each map."""
        return list(product(self.kinds, self.modules, self.classes))

    @property
    def hooks(self) -> list[str]:
        """The hook points that are read."""
        knocked = [STREAM_IN] if KNOCK_OUT in self.kinds and BLOCK in self.modules else []
        return [HOOK_OF[module] for module in dict.fromkeys(self.modules)] + knocked


@dataclass(frozen=True, eq=False)
class Partners:
    """The partners of each class, by draw, in the other class and in its own."""

    across: dict[str, Numbers]
    within: dict[str, Numbers]

    @classmethod
    def drawn(cls, patching: Patching, settings: Settings) -> "Partners":
        """Partners as the settings say."""
        rng = np.random.default_rng(settings.seed)
        across = others(settings.partners, patching.lengths, settings.draws, rng)
        within = (own_class(n, settings.null_draws, rng) for n in patching.sizes)
        return cls(dict(zip(CLASSES, across, strict=True)), dict(zip(CLASSES, within, strict=True)))

    def replacements(self, patching: Patching, module: str, label: str) -> list[Replacement]:
        """Of a class by its partners of the other one, then by those of its own."""
        across = [(partners, OTHER[label]) for partners in self.across[label]]
        within = [(partners, label) for partners in self.within[label]]
        return [patching.interchanged(module, label, *pair) for pair in across + within]


def interchange(
    model: Any,
    prompts: ContrastSet | Contrast,
    *,
    positions: Positions = 12,
    modules: Sequence[str] = (BLOCK,),
    kinds: Sequence[str] = (INTERCHANGE,),
    classes: Sequence[str] = CLASSES,
    partners: str | Sequence[int] = "random",
    draws: int = 1,
    null_draws: int = 1,
    leaving: str = NOTHING,
    seed: int = 0,
    batch_size: int = 16,
    engine: str = AUTO,
    stage: Stage = silent,
) -> pd.DataFrame:
    """Replace activations at every layer and token, and read how far the refusal score follows.

    Interchange puts the activation of a partner in the place of a prompt's own (interchange interventions,
    Geiger et al. 2021, arXiv 2106.02997, section 3; also called activation patching). Harmful prompts receive
    harmless prompts' activations and the other way round. Knock-out leaves out what a module adds.

    Tokens are counted from the prompt's end. A token is replaced only if the partner has one there too that
    belongs to the same part, the instruction or the template behind it; otherwise it is left alone, and the
    prompt does not count in `n` but in `n_left_out`. Of a group of tokens those with a counterpart are
    replaced, which is the share `replaced`. What all prompts begin with is never replaced.

    Args:
        model: A hooked model.
        prompts: The prompts whose activations are read and replaced; `test` of a contrast set.
        positions: A number n for each of the last n tokens; "last", "instruction", "template" (what the chat
            template writes behind it) or "suffix" (both), whose tokens are replaced together; a negative
            index; or several of these.
        modules: "block" (the stream that leaves a block; for knock-out what the block adds), "attention",
            "mlp".
        kinds: "interchange", "knock_out" or both.
        classes: Classes whose activations are replaced.
        partners: "random" prompts of the other class; "length", those nearest in length; "paired", prompt i
            of one class with prompt i of the other; or of each harmful prompt the number of its partner.
        draws: Partners of each prompt, whose effects are averaged.
        null_draws: Partners of the prompt's own class, whose effects are the null; 0: no null.
        leaving: What knock-out leaves in the place of a module: "nothing", or its "mean" over all prompts
            at that token.
        seed: Of partners, intervals and tests.
        batch_size: Prompts per batch.
        engine: "single_pass", "hooks" (one forward pass per number), or "auto".
        stage: Shows progress; see `ot_lens.progress`.

    Returns:
        One row per kind, module, class, layer and position: kind, module, patched (the class whose
        activations are replaced), layer, position, token (its text, or the group), value (mean change of the
        refusal score), unit, low and high (95 % interval over prompts), null_mean, null_low and null_high
        (partners of the same class), gap (from the mean score of this class to that of the other), share
        (value over gap), p_value and p_adjusted (flipped signs, of the value less the null; adjusted over the
        map of one kind, module and class), kl (of knock-out: mean KL from the unedited next token), n,
        n_left_out, replaced, partners, draws, null_draws, leaving, seed, engine.

    Raises:
        HookError: If there is no such position or engine, or the model does not tell attention and MLP apart.
        PromptError: If an option is unknown, a class is too small for its null, given partners do not pair
            the prompts, or prompts have thoughts.
        SinglePassError: If engine is "single_pass" and the model cannot be replayed block by block.
        ActivationError: If logits are NaN.
    """
    given = partners if isinstance(partners, str) else tuple(partners)
    settings = Settings(
        tuple(modules), tuple(kinds), tuple(classes), given, draws, null_draws, leaving, seed, engine
    )
    contrast = prompts.test if isinstance(prompts, ContrastSet) else prompts
    patching = Patching.read(model, contrast, positions, settings.hooks, batch_size)
    found = Partners.drawn(patching, settings)
    total = sum(len(patching.numbers(label)) for *_, label in settings.jobs)
    with stage("interchange", total) as step:
        parts = [_map(patching, found, settings, job, step) for job in settings.jobs]
    return pd.concat(parts, ignore_index=True)


def _map(
    patching: Patching, partners: Partners, settings: Settings, job: tuple[str, str, str], progress: Progress
) -> pd.DataFrame:
    """The rows of one map."""
    kind, module, label = job
    if kind == INTERCHANGE:
        replacements, draws = partners.replacements(patching, module, label), len(partners.across[label])
    else:
        leave = patching.left_out if settings.leaving == NOTHING else patching.at_its_mean
        replacements, draws = [leave(module)], 1
    effects = patching.effects(
        label, replacements, kl=kind == KNOCK_OUT, engine=settings.engine, progress=progress
    )
    gap = patching.gap * (1 if label == CLASSES[1] else -1)
    table = pd.DataFrame(cells(effects, patching.places, draws, gap, settings.seed))
    for name, value in (("patched", label), ("module", module), ("kind", kind)):
        table.insert(0, name, value)
    given = settings.partners if isinstance(settings.partners, str) else "given"
    return table.assign(
        partners=given if kind == INTERCHANGE else "",
        draws=draws if kind == INTERCHANGE else 0,
        null_draws=len(replacements) - draws,
        leaving=settings.leaving if kind == KNOCK_OUT else "",
        seed=settings.seed,
        engine=effects.engine,
    )
