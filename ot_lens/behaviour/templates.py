"""Templates of judges: a request and an answer put into one text."""

from string import Formatter

from ot_lens.behaviour.judges import answer_text
from ot_lens.errors import JudgeError
from ot_lens.generation import Completion
from ot_lens.io.untrusted import abbreviated
from ot_lens.prompts import Prompt

FIELDS = ("prompt", "completion")


def checked_template(template: str) -> str:
    """The template, if it can be filled.

    Raises:
        JudgeError: If it does not show the completion, or has braces that are no {prompt} or {completion}.
    """
    try:
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise JudgeError(
            f"the template cannot be filled ({abbreviated(error)}): write a plain brace twice."
        ) from error
    unknown = sorted(fields - set(FIELDS))
    if unknown:
        raise JudgeError(
            f"the template has a field {{{unknown[0]}}}: only {{prompt}} and {{completion}} are known."
        )
    if "completion" not in fields:
        raise JudgeError("the template does not show the {completion}: there would be nothing to judge.")
    return template


def fill(template: str, prompt: Prompt | str, completion: str | Completion) -> str:
    """The template with a request and an answer in it; braces in those stay as they are."""
    text = prompt.text if isinstance(prompt, Prompt) else prompt
    return template.format(prompt=text, completion=answer_text(completion))
