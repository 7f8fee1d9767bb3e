"""Whether a model, asked, calls a request harmful: a question after the request, and its first words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.behaviour.next_token import EPSILON, next_token_logprobs, token_ids
from ot_lens.behaviour.refusal import declared
from ot_lens.errors import PromptError
from ot_lens.models import backend
from ot_lens.prompts import Prompt, as_texts

PLACE = "{prompt}"


@dataclass(frozen=True)
class HarmQuestion:
    """A question about a request.

    Attributes:
        text: The user's turn, with "{prompt}" where the request is to go.
        harmful: Words or ids of the tokens that begin the answer if the request is harmful.
        harmless: Likewise if it is not.
    """

    text: str
    harmful: tuple[str | int, ...]
    harmless: tuple[str | int, ...]

    def __post_init__(self) -> None:
        """Raise a PromptError unless the request has a place and both answers begin with something else."""
        if self.text.count(PLACE) != 1:
            raise PromptError(
                f"The question {self.text!r} must contain {PLACE} once, where the request goes."
            )
        if not self.harmful or not self.harmless or set(self.harmful) & set(self.harmless):
            raise PromptError(
                "A question needs tokens of both answers, and none that begins both, got harmful = "
                f"{self.harmful} and harmless = {self.harmless}."
            )

    def about(self, prompts: Sequence[Prompt | str]) -> list[str]:
        """The question about each request."""
        return [self.text.replace(PLACE, text) for text in as_texts(prompts)]


def harm_question(model: Any) -> HarmQuestion | None:
    """The question that a model declares (tokenizer_config.json, key "ot_lens"), else None."""
    own = declared(backend(model)).harm_question
    return None if own is None else HarmQuestion(own.question, tuple(own.harmful), tuple(own.harmless))


def harm_score(
    model: Any,
    prompts: Sequence[Prompt | str],
    question: HarmQuestion | None = None,
    *,
    batch_size: int = 64,
) -> Float64[Tensor, " prompt"]:
    """How much rather a model, asked, calls each request harmful: log p_harmful - log p_harmless, in nats.

    p is the sum of the probabilities of the tokens that begin either answer, at the last token of the
    question; epsilon 1e-8 inside both logarithms, as in the refusal score. Active interventions apply.

    Source: the reply inversion task of Zhao et al. 2025 (arXiv 2507.11878), section 3.3, read at one token.

    Args:
        model: A hooked model.
        prompts: Requests; the question and the chat template are applied here.
        question: Default: the one that the model declares.
        batch_size: Prompts per batch.

    Raises:
        PromptError: If there is no question, a token is not a single token of the vocabulary, or prompts
            cannot be rendered.
    """
    asked = question or harm_question(model)
    if asked is None:
        raise PromptError("This model declares no question about harm: pass question=HarmQuestion(...).")
    served = backend(model)
    ids = [token_ids(served, tokens, "Answer") for tokens in (asked.harmful, asked.harmless)]
    logprobs = next_token_logprobs(model, asked.about(prompts), batch_size=batch_size)
    harmful, harmless = (torch.log(logprobs[:, list(own)].exp().sum(1) + EPSILON) for own in ids)
    return harmful - harmless
