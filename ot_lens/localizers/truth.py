"""Where refusal was planted: what a model declares that learnt it in known layers only."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from ot_lens.errors import ModelError
from ot_lens.localizers.bands import BAND, NOTHING, SPREAD
from ot_lens.models import backend


class _Planted(BaseModel):
    first: int
    last: int
    shuffled: bool = False
    drop: float = 0.0


@dataclass(frozen=True)
class Truth:
    """Where refusal was planted: in a band of layers, in all of them, or, as a control, nowhere."""

    kind: str
    first: int
    last: int

    @classmethod
    def of(cls, model: Any) -> "Truth | None":
        """As a model declares it (`planted` in ot_lens.json of its adapter), None if it does not.

        Where all layers were free to learn, training chose among them, and nothing is known beforehand.
        """
        served = backend(model)
        declared = (getattr(served.tokenizer, "init_kwargs", {}).get("ot_lens") or {}).get("planted")
        if declared is None:
            return None
        try:
            planted = _Planted.model_validate(declared)
        except ValidationError as error:
            raise ModelError(f"ot_lens.json declares planted layers as {declared!r}: {error}") from error
        everywhere = planted.last - planted.first + 1 == served.n_layers
        if everywhere and not planted.drop and not planted.shuffled:
            return None
        kind = NOTHING if planted.shuffled else SPREAD if everywhere else BAND
        return cls(kind, planted.first, planted.last)

    def judge(self, row: pd.Series) -> tuple[bool, float]:
        """Whether a localizer is right, and the distance in layers of its band from a planted one."""
        if self.kind != BAND:
            return row["verdict"] == self.kind, float("nan")
        if row["verdict"] != BAND:
            return False, float("nan")
        apart = max(0, self.first - row["last"], row["first"] - self.last)
        return apart == 0, float(apart)
