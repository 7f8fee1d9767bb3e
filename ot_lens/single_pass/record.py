"""One forward pass of a batch, whose blocks can be run again on other rows.

Rows are [row, batch, position, d_model]; with scope "last" there is one position, the prompt's last.
"""

from ot_lens.errors import ModelError, SinglePassError
from ot_lens.models import Backend, HFBackend, TokenBatch
from ot_lens.single_pass.hooked_transformer import HookedTransformerRecord
from ot_lens.single_pass.hugging_face import HuggingFaceRecord

Record = HuggingFaceRecord | HookedTransformerRecord


def run(served: Backend, batch: TokenBatch, *, last: bool) -> Record:
    """Run a forward pass and record it."""
    try:
        if isinstance(served, HFBackend):
            return HuggingFaceRecord(served.hf_model, batch, last=last)
        return HookedTransformerRecord(served.model, batch, last=last)
    except (TypeError, AttributeError, KeyError, ModelError) as error:
        raise SinglePassError(f"{type(served.model).__name__} cannot be replayed: {error}") from error
