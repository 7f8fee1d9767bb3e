"""The shape of a page's request for an update: anything else is refused before Dash reads it.

Dash takes a request's shape on trust, so a forged one ends in an unhandled error. Pydantic reads the bytes
here first; it also bounds how deep they are nested and refuses text that is no Unicode.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Word = str | int | float | bool | None
Value = Word | list[Word] | dict[str, Word | list[Word] | dict[str, Word]]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Place(_Strict):
    """Where a view stands on the page."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    type: str
    view: str
    run: int


class Property(_Strict):
    """A property of a component, with its value where it is an input."""

    id: str | Place
    property: str
    value: Value = None


class Update(_Strict):
    """A request for the outputs of one callback."""

    output: str
    outputs: list[Property]
    inputs: list[Property]
    changed: list[str] = Field(alias="changedPropIds")
    state: list[Property] = []

    def fits(self, callbacks: Mapping[str, Any]) -> bool:
        """Whether it asks for a callback of the server with the inputs and outputs that this one has."""
        known = callbacks.get(self.output, {})
        if "callback" not in known or self.state:
            return False
        outputs, inputs = known["output"], known["inputs"]
        return _names(self.outputs) == [part.component_property for part in outputs] and _names(
            self.inputs
        ) == [part["property"] for part in inputs]


def is_known(body: bytes, callbacks: Mapping[str, Any]) -> bool:
    """Whether a request's body is JSON that asks for a callback of the page, in the page's way.

    Args:
        body: What was sent.
        callbacks: The application's callbacks, by the name of their outputs.
    """
    try:
        return Update.model_validate_json(body).fits(callbacks)
    except ValidationError:
        return False


def _names(parts: list[Property]) -> list[str]:
    return [part.property for part in parts]
