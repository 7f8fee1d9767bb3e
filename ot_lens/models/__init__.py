"""One door to a model, and one protocol over the kinds of hooked model."""

from ot_lens.models.backend import backend, evaluating
from ot_lens.models.batching import (
    TOKEN_BUDGET,
    TokenBatch,
    batches,
    batches_of_rows,
    groups_by_length,
    in_memory,
    pad_left,
)
from ot_lens.models.changes import Changes
from ot_lens.models.chat import (
    encode,
    post_instruction_tokens,
    render,
    render_turns,
    set_system_prompt,
    system_prompt,
)
from ot_lens.models.hooked import HookedCausalLM
from ot_lens.models.hugging_face import HFBackend
from ot_lens.models.in_force import Force, claim, release
from ot_lens.models.loading import VARIANTS, load_model, model_name
from ot_lens.models.protocol import HOOKS, Backend, Call, pad_id, prompt_width
from ot_lens.models.record import model_record

__all__ = [
    "HOOKS",
    "TOKEN_BUDGET",
    "VARIANTS",
    "Backend",
    "Call",
    "Changes",
    "Force",
    "HFBackend",
    "HookedCausalLM",
    "TokenBatch",
    "backend",
    "batches",
    "batches_of_rows",
    "claim",
    "encode",
    "evaluating",
    "groups_by_length",
    "in_memory",
    "load_model",
    "model_name",
    "model_record",
    "pad_id",
    "pad_left",
    "post_instruction_tokens",
    "prompt_width",
    "release",
    "render",
    "render_turns",
    "set_system_prompt",
    "system_prompt",
]
