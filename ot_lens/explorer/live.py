"""One prompt under two edits and without: next token, refusal score and answer, none of them stored."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch

from ot_lens.behaviour import (
    kl_divergence,
    model_phrases,
    next_token_logprobs,
    phrase_list,
    refusal_token_ids,
    refuses,
    score_from_logprobs,
)
from ot_lens.errors import ModelError, PromptError
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import Choices, State
from ot_lens.generation import complete
from ot_lens.interventions import Edits, intervene
from ot_lens.localization.candidates import edits_at
from ot_lens.models import backend, encode, load_model

MOST_CHARACTERS = 2000
MOST_PROMPT_TOKENS = 512
MOST_NEW_TOKENS = 64
SHOWN_TOKENS = 8
UNEDITED = ""
T = TypeVar("T")


@dataclass(frozen=True)
class NextToken:
    """The next token under one edit: probabilities of the displayed tokens, score and KL in nats."""

    probabilities: tuple[float, ...]
    score: float | None  # None if the model has no refusal token
    kl: float  # KL(unedited || edited)


@dataclass(frozen=True)
class Answer:
    """The answer under one edit: greedy, up to the token budget."""

    text: str
    refuses: bool
    truncated: bool


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

    def edits(self, key: str, state: State) -> Edits:
        """The stored maps of a method at the chosen layers; RFA takes one layer's direction everywhere."""
        if key == UNEDITED or not state.layers:
            return {}
        maps = {layer: self.run.map(key, layer).at(state.strength) for layer in state.layers}
        return edits_at(self.run.map_folders[key][0], maps, state.layers, backend(self.model).n_layers)

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

    def next_tokens(self, prompt: str, state: State) -> tuple[list[str], list[bool], list[NextToken]]:
        """The likeliest next tokens, which of them begin a refusal, and the three columns."""
        text = self.checked(prompt)
        rows = torch.cat(self._columns(state, lambda model: next_token_logprobs(model, [text])))
        # The most likely tokens of any column; ties go to the lower id.
        ids = rows.max(dim=0).values.argsort(descending=True, stable=True)[:SHOWN_TOKENS].tolist()
        scores = score_from_logprobs(rows, self._refusal).tolist() if self._refusal else [None] * len(rows)
        kl = [float(kl_divergence(rows[:1], row[None])) for row in rows]
        results = [*map(NextToken, map(tuple, rows[:, ids].exp().tolist()), scores, kl)]
        return [*map(self._token, ids)], [i in self._refusal for i in ids], results

    def answers(self, prompt: str, state: State) -> list[Answer]:
        """The answers of the unedited model and under both edits."""
        text = self.checked(prompt)
        asked = self.run.config.max_new_tokens if self.run.config is not None else MOST_NEW_TOKENS
        budget = min(asked, MOST_NEW_TOKENS)
        completions = self._columns(state, lambda model: complete(model, [text], max_new_tokens=budget)[0])
        verdicts = refuses(completions, self._phrases)
        return [Answer(c.text, r, c.truncated) for c, r in zip(completions, verdicts, strict=True)]

    def _columns(self, state: State, function: Callable[[Any], T]) -> list[T]:
        """A function of the model without an edit and with each of both, which are active for it alone."""
        model, results = self.model, []
        hook = self.run.config.hook if self.run.config is not None else "resid_pre"
        for key in (UNEDITED, state.ot, state.by):
            edits, tokens = self.edits(key, state), Choices(self.run).scope(key, state.tokens)
            with self._lock, intervene(model, edits, tokens, hook=hook):
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
