"""The shape of a page's request for an update: anything else is refused before Dash reads it.

Dash trusts the shape of a request, so a forged one ends in an unhandled error. Pydantic parses the bytes
first, which also bounds their nesting and refuses text that is not valid Unicode.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Word = str | int | float | bool | None
Value = Word | list[Word] | dict[str, Word | list[Word] | dict[str, Word]]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class PatternId(_Strict):
    """The identifier of one of several components of a type."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    type: str
    view: str
    run: int


class Property(_Strict):
    """A property of a component, with its value if it is an input."""

    id: str | PatternId
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
        """Whether the server has this callback, with these inputs and outputs."""
        known = callbacks.get(self.output, {})
        if "callback" not in known or self.state:
            return False
        outputs = [part.component_property for part in known["output"]]
        inputs = [part["property"] for part in known["inputs"]]
        return _names(self.outputs) == outputs and _names(self.inputs) == inputs


def is_known(body: bytes, callbacks: Mapping[str, Any]) -> bool:
    """Whether a request's body is JSON that calls one of the page's callbacks the way the page does."""
    try:
        return Update.model_validate_json(body).fits(callbacks)
    except ValidationError:
        return False


def _names(properties: list[Property]) -> list[str]:
    return [part.property for part in properties]
