"""One prompt under edits and without: next token, refusal score and answer, none of them stored."""

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pandas as pd
import torch

from ot_lens.activations import restricted
from ot_lens.behaviour import (
    kl_divergence,
    model_phrases,
    next_token_logprobs,
    phrase_list,
    refusal_token_ids,
    refuses,
    score_from_logprobs,
    token_scores,
)
from ot_lens.errors import FitError, ModelError, PoorFitWarning, PromptError
from ot_lens.explorer.runs import OpenRun, split_key
from ot_lens.explorer.state import State, choices_of
from ot_lens.generation import Completion, complete
from ot_lens.interventions import Edits, intervene
from ot_lens.localization import MethodSpec
from ot_lens.localization.candidates import edits_at
from ot_lens.localization.settings import scope_of
from ot_lens.models import backend, encode, load_model
from ot_lens.plots import method_mark
from ot_lens.plots.style import BASELINE, Mark, method_order
from ot_lens.transport import METHODS, ActivationMap, fit_all

MOST_CHARACTERS = 2000
MOST_PROMPT_TOKENS = 512
MOST_NEW_TOKENS = 64
SHOWN_TOKENS = 8
MOST_FURTHER = 4
UNEDITED = ""
TOGETHER = Mark("All edits together", BASELINE.color, BASELINE.marker)
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """What a request asks of the model: a state of the page, and edits besides the two that it compares."""

    state: State
    further: tuple[str, ...] = ()  # keys of methods
    together: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The methods of the columns after the unedited model, without repetition."""
        return (self.state.ot, self.state.by, *(key for key in self.further if key not in self.state.keys))


@dataclass(frozen=True)
class NextToken:
    """The next token under one edit: probabilities of the displayed tokens, score and KL in nats."""

    probabilities: tuple[float, ...]
    score: float | None  # None if the model has no refusal token
    kl: float  # KL(unedited || edited)


@dataclass(frozen=True)
class TokenScore:
    """One token of an answer: its log-probability under the edit and without, and the score before it."""

    token: str
    log_probability: float
    unedited: float
    score: float | None  # None if the model has no refusal token


@dataclass(frozen=True)
class Answer:
    """The answer under one edit: greedy, up to the token budget."""

    text: str
    refuses: bool
    truncated: bool
    tokens: tuple[TokenScore, ...] = ()


class LiveModel:
    """A model on which edits are tried, one request at a time: an edit is active only during its own."""

    def __init__(self, run: OpenRun, name: str) -> None:
        """Name the model, which is loaded on first use."""
        self.run = run
        self.name = name
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The model, loaded and checked against the run."""
        with self._loading:
            if self._model is None:
                model = load_model(**self._arguments())
                self._check(model)
                self._model = model
        return self._model

    def _arguments(self) -> dict[str, Any]:
        """How the run loaded its model, so that prompts are rendered alike; another model as it comes."""
        if self.run.config is None:
            return {"model": self.name}
        if self.name != self.run.config.model:
            return {"model": self.name, "system_prompt": self.run.config.system_prompt}
        return {**self.run.config.loading(), "trust_remote_code": False}

    def _check(self, model: Any) -> None:
        known, served = self.run.manifest.get("model") or {}, backend(model)
        for what, value in (("n_layers", served.n_layers), ("d_model", served.d_model)):
            if known.get(what) not in (None, value):
                raise ModelError(
                    f"{self.name} has {what} = {value}, but the model of the run has {known[what]}: "
                    "pass the model of the run with --model."
                )

    @cached_property
    def fitted_here(self) -> tuple[str, ...]:
        """Registered methods without stored maps, fitted to the run's activations when asked for."""
        stored = {split_key(key)[0] for key in self.run.map_folders}
        if self.run.training is None:
            return ()
        return tuple(name for name, known in METHODS.items() if known.fit is not None and name not in stored)

    @property
    def offered(self) -> list[str]:
        """Keys of all methods that can be tried, in the order of the figures."""
        keys = {*self.run.map_folders, *self.fitted_here}
        return sorted(keys, key=lambda key: method_order(*split_key(key)))

    def asked(self, fields: Mapping[str, Any], state: State) -> Asked:
        """The further edits of a request; unknown ones are dropped."""
        given = fields.get("further")
        further = [key for key in self.offered if key in given] if isinstance(given, list) else []
        return Asked(state, tuple(further[:MOST_FURTHER]), fields.get("together") is True)

    def edits(self, key: str, state: State) -> Edits:
        """The maps of a method at the chosen layers; RFA takes one layer's direction everywhere."""
        if key == UNEDITED or not state.layers:
            return {}
        maps = {layer: self._map(key, layer).at(state.strength) for layer in state.layers}
        stored = self.run.map_folders.get(key)
        method = stored[0] if stored is not None else MethodSpec(key)
        return edits_at(method, maps, state.layers, backend(self.model).n_layers)

    def _map(self, key: str, layer: int) -> ActivationMap:
        """The stored map, or one that is fitted to the run's training activations."""
        training = self.run.training
        if key in self.run.map_folders or training is None:
            return self.run.map(key, layer)
        return self.run.kept(("fitted", key, layer), lambda: self._fit(key, layer))

    def _fit(self, key: str, layer: int) -> ActivationMap:
        training, position = self.run.training, self.run.position
        if training is None or layer not in training.layers:
            raise FitError(f"The run holds no activations of layer {layer} to fit {key} to.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PoorFitWarning)  # of a try on the page
            return fit_all(restricted(training, [layer], position), key, position)[layer]

    def _scope(self, key: str, tokens: str) -> str:
        """The token scope of a method's edits; "auto" is the one of the sweep, or the method's own."""
        if key in self.fitted_here:
            return scope_of(key, tokens, self.run.position)
        return choices_of(self.run).scope(key, tokens)

    def marks(self, asked: Asked) -> list[Mark]:
        """The marks of the columns: the unedited model, each edit, and all of them."""
        edits = [method_mark(*split_key(key)) for key in asked.keys]
        return [BASELINE, *edits, *([TOGETHER] if asked.together else [])]

    def checked(self, prompt: Any) -> str:
        """The prompt, if it is text, not empty and not too long; else PromptError."""
        if not isinstance(prompt, str) or not prompt.strip():
            raise PromptError("Type a prompt.")
        if len(prompt) > MOST_CHARACTERS:
            raise PromptError(f"The prompt has {len(prompt)} characters; the limit is {MOST_CHARACTERS}.")
        tokens = len(encode(backend(self.model), [prompt])[0])
        if tokens > MOST_PROMPT_TOKENS:
            raise PromptError(f"The prompt has {tokens} tokens; the limit is {MOST_PROMPT_TOKENS}.")
        return prompt

    def next_tokens(self, prompt: str, asked: Asked) -> tuple[list[str], list[bool], list[NextToken]]:
        """The likeliest next tokens, which of them begin a refusal, and the columns."""
        text = self.checked(prompt)
        rows = torch.cat(self._columns(asked, lambda model: next_token_logprobs(model, [text])))
        # The most likely tokens of any column; ties go to the lower id.
        ids = rows.max(dim=0).values.argsort(descending=True, stable=True)[:SHOWN_TOKENS].tolist()
        scores = score_from_logprobs(rows, self._refusal).tolist() if self._refusal else [None] * len(rows)
        kl = [float(kl_divergence(rows[:1], row[None])) for row in rows]
        results = [*map(NextToken, map(tuple, rows[:, ids].exp().tolist()), scores, kl)]
        return [*map(self._token, ids)], [i in self._refusal for i in ids], results

    def answers(self, prompt: str, asked: Asked) -> list[Answer]:
        """The answers of the unedited model and under each edit, token by token."""
        text = self.checked(prompt)
        most = self.run.config.max_new_tokens if self.run.config is not None else MOST_NEW_TOKENS
        budget = min(most, MOST_NEW_TOKENS)

        def answered(model: Any) -> tuple[Completion, Any]:
            completion = complete(model, [text], max_new_tokens=budget)[0]
            return completion, self._scored(text, [completion])

        completions, own = zip(*self._columns(asked, answered), strict=True)
        with self._lock:
            unedited = self._scored([text] * len(completions), completions)
        verdicts = refuses(completions, self._phrases)
        return [
            Answer(
                c.text, refused, c.truncated, self._tokens_of(scores, unedited[unedited["prompt"] == number])
            )
            for number, (c, refused, scores) in enumerate(zip(completions, verdicts, own, strict=True))
        ]

    def _scored(self, prompts: str | list[str], completions: Sequence[Completion]) -> pd.DataFrame:
        texts = [prompts] if isinstance(prompts, str) else prompts
        # Any token will do where the vocabulary has none that begins a refusal: its score is not shown.
        return token_scores(self.model, texts, completions, refusal_tokens=self._refusal or [0])

    def _tokens_of(self, own: pd.DataFrame, unedited: pd.DataFrame) -> tuple[TokenScore, ...]:
        columns = own["token_id"], own["log_probability"], unedited["log_probability"], own["refusal_score"]
        return tuple(
            TokenScore(
                self._token(int(token)), float(here), float(there), float(score) if self._refusal else None
            )
            for token, here, there, score in zip(*columns, strict=True)
        )

    def _columns(self, asked: Asked, function: Callable[[Any], T]) -> list[T]:
        """A function of the model without an edit, with each, and with all; they are active for it alone."""
        model, results, state = self.model, [], asked.state
        hook = self.run.config.hook if self.run.config is not None else "resid_pre"
        edits = [(self.edits(key, state), self._scope(key, state.tokens)) for key in asked.keys]
        for active in ([], *([edit] for edit in edits), *([edits] if asked.together else [])):
            with self._lock, ExitStack() as stack:
                for sites, tokens in active:
                    stack.enter_context(intervene(model, sites, tokens, hook=hook))
                results.append(function(model))
        return results

    @cached_property
    def _refusal(self) -> tuple[int, ...]:
        """Ids of the tokens that begin a refusal; empty if the vocabulary has none."""
        tokens = self.run.config.refusal_tokens if self.run.config is not None else None
        try:
            return refusal_token_ids(self.model, tokens)
        except PromptError:
            return ()

    @cached_property
    def _phrases(self) -> Any:
        phrases = self.run.config.phrases if self.run.config is not None else None
        return phrase_list(phrases) if phrases is not None else model_phrases(self.model)

    def _token(self, token: int) -> str:
        tokenizer = backend(self.model).tokenizer
        return str(tokenizer.decode([token])).strip() or str(tokenizer.convert_ids_to_tokens(token))


def live_model(run: OpenRun, requested: str | None) -> LiveModel | None:
    """The model of the live panel: the requested one, or the embedded one if the run used it, or none."""
    name = requested or (run.config.model if run.config is not None else "")
    embedded = name == "organism" or name.startswith("organism:")
    return LiveModel(run, name) if requested or embedded else None
