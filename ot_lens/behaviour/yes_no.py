"""A judge that is a language model answering a question with yes or no."""

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from pydantic_core import from_json
from torch import nn

from ot_lens.behaviour.judges import QUESTIONS, Verdict, answer_text, checked_template, fill
from ot_lens.errors import JudgeError, PromptError, one_of
from ot_lens.generation import Completion, answers
from ot_lens.models import (
    backend,
    batches_of_rows,
    load_model,
    model_name,
    render_turns,
    template_of,
)
from ot_lens.prompts import Prompt

FORMS = ("user", "text", "dialogue")
_PRESETS = files("ot_lens") / "behaviour" / "presets"


class YesNoJudge:
    """Yes or no, read from the first word that a language model generates greedily."""

    def __init__(
        self,
        model: Any,
        template: str | None,
        *,
        question: str,
        form: str = "user",
        yes: Sequence[str] = ("yes",),
        no: Sequence[str] = ("no",),
        max_new_tokens: int = 8,
        batch_size: int = 8,
        name: str | None = None,
        version: str = "1",
    ) -> None:
        """Load the judge's model.

        Args:
            model: What `load_model` takes: a hub name, a folder, a hooked model.
            template: Text with {completion} and usually {prompt}; None if `form` is "dialogue".
            question: What a yes means: "refused" or "harmful".
            form: How the model receives the template: "user", as a user turn of its chat template; "text",
                unchanged, with the tokenizer's special tokens; "dialogue", without a template: request and
                answer are two turns of the model's chat template.
            yes: First words that mean yes, in any letter case.
            no: First words that mean no.
            max_new_tokens: Tokens it may generate.
            batch_size: Texts per batch.
            name: Name shown with the results; default: that of the model.
            version: Version shown with the results.

        Raises:
            ModelError: If the model cannot be loaded.
            JudgeError: If template, form, question or words do not fit.
            PromptError: If the form needs a chat template and the tokenizer has none.
        """
        one_of("question of a judge", question, QUESTIONS, JudgeError)
        one_of("form of a judge's input", form, FORMS, JudgeError)
        self._words = _words(yes, no)
        self._template = _template_for(form, template)
        loaded = load_model(model)
        self._served = backend(loaded)
        if form != "text" and not self._served.tokenizer.chat_template:
            raise PromptError(f"Form {form!r} needs a chat template, which the judge's tokenizer lacks.")
        self._form, self._max_new_tokens, self._batch_size = form, max_new_tokens, batch_size
        self.question, self.version = question, version
        self.name = name or model_name(loaded)

    @classmethod
    def preset(cls, name: str, model: Any = None, *, batch_size: int = 8) -> "YesNoJudge":
        """A judge with the template, the answer words and the model of its authors.

        Args:
            name: "harmbench", the HarmBench classifier for text behaviours (arXiv 2402.04249), or
                "llama_guard", Llama Guard 3 (arXiv 2312.06674).
            model: Its model from another location, such as a local folder; default: its name on the hub.
            batch_size: Texts per batch.

        Raises:
            JudgeError: If there is no such preset.
            ModelError: If the model cannot be loaded.
        """
        settings = preset_settings(name)
        own_model = settings.pop("model")
        return cls(own_model if model is None else model, batch_size=batch_size, **settings)

    @property
    def network(self) -> nn.Module:
        """The network that answers."""
        return self._served.model

    def __call__(
        self, prompts: Sequence[Prompt | str], completions: Sequence[str | Completion]
    ) -> list[Verdict]:
        """One verdict per completion; None if the model says neither, or the input does not fit."""
        rows = [self._encode(p, c) for p, c in zip(prompts, completions, strict=True)]
        room = (self._served.n_ctx or max(map(len, rows)) + self._max_new_tokens) - self._max_new_tokens
        fitting = [i for i, row in enumerate(rows) if len(row) <= room]
        verdicts = {
            i: Verdict(None, note=f"input of {len(row)} tokens: the judge's model has room for {room}")
            for i, row in enumerate(rows)
        }
        whole = batches_of_rows(self._served, [rows[i] for i in fitting], self._batch_size)
        opened = self._form != "text" and template_of(self._served).opened
        given = answers(self._served, whole, self._max_new_tokens, [opened] * len(fitting))
        verdicts.update((i, self.read(answer.text)) for i, answer in zip(fitting, given, strict=True))
        return [verdicts[i] for i in range(len(rows))]

    def read(self, answer: str) -> Verdict:
        """Yes or no from the first word of an answer; None if it is neither."""
        first = re.match(r"\W*(\w+)", answer)
        return Verdict(self._words.get(first[1].lower()) if first else None, answer=answer.strip())

    def _encode(self, prompt: Prompt | str, completion: str | Completion) -> list[int]:
        tokenizer = self._served.tokenizer
        if self._template is not None:
            text = fill(self._template, prompt, completion)
            if self._form == "text":
                return list(tokenizer(text, verbose=False)["input_ids"])
            turns = [{"role": "user", "content": text}]
        else:
            request = prompt.text if isinstance(prompt, Prompt) else prompt
            turns = [
                {"role": "user", "content": request},
                {"role": "assistant", "content": answer_text(completion)},
            ]
        return list(
            tokenizer(render_turns(self._served, turns), add_special_tokens=False, verbose=False)["input_ids"]
        )


def judge_presets() -> list[str]:
    """Names of the presets of `YesNoJudge.preset`."""
    return sorted(f.name.removesuffix(".json") for f in _PRESETS.iterdir())


def preset_settings(name: str) -> dict[str, Any]:
    """Model, template and further arguments of a preset."""
    one_of("judge preset", name, judge_presets(), JudgeError)
    settings: dict[str, Any] = from_json((_PRESETS / f"{name}.json").read_bytes())
    del settings["source"]
    return settings


def _words(yes: Sequence[str], no: Sequence[str]) -> dict[str, bool]:
    meanings = {word.lower(): True for word in yes} | {word.lower(): False for word in no}
    if not yes or not no or len(meanings) != len(set(yes)) + len(set(no)):
        raise JudgeError(f"yes = {list(yes)}, no = {list(no)}: each needs a word, and no word twice.")
    odd = [word for word in meanings if not re.fullmatch(r"\w+", word)]
    if odd:
        raise JudgeError(f"The answer word {odd[0]!r} is not one word: only the first word is read.")
    return meanings


def _template_for(form: str, template: str | None) -> str | None:
    if (template is None) != (form == "dialogue"):
        raise JudgeError(f"form = {form!r}, template = {template!r}: only a dialogue has no template.")
    return None if template is None else checked_template(template)
