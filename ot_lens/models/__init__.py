"""Loading models, and one set of methods for every kind of hooked model."""

from ot_lens.models.backends import Backend, Call, HFBackend, backend, check_layer, prompt_width
from ot_lens.models.batching import (
    TOKEN_BUDGET,
    TokenBatch,
    batches,
    batches_of_rows,
    by_row,
    groups_by_length,
    in_memory,
    token_batch,
)
from ot_lens.models.chat import (
    chat_settings,
    check_room,
    common_prefix,
    control_tokens,
    encode,
    end_of_turn,
    post_instruction_tokens,
    render,
    render_turns,
    set_chat,
    template_of,
)
from ot_lens.models.files import VARIANTS
from ot_lens.models.hooked import HOOKS, HookedCausalLM, check_tokens, pad_left
from ot_lens.models.instruction import instruction_end, instruction_ends
from ot_lens.models.loading import load_model, model_name
from ot_lens.models.record import model_record
from ot_lens.models.reversible import ActiveFlag, Reversible, claim, evaluating, frozen, release
from ot_lens.models.thoughts import (
    Answer,
    read_answer,
    separator_length,
    split_thought,
    thought_ends,
    thought_length,
)

__all__ = [
    "HOOKS",
    "TOKEN_BUDGET",
    "VARIANTS",
    "ActiveFlag",
    "Answer",
    "Backend",
    "Call",
    "HFBackend",
    "HookedCausalLM",
    "Reversible",
    "TokenBatch",
    "backend",
    "batches",
    "batches_of_rows",
    "by_row",
    "chat_settings",
    "check_layer",
    "check_room",
    "check_tokens",
    "claim",
    "common_prefix",
    "control_tokens",
    "encode",
    "end_of_turn",
    "evaluating",
    "frozen",
    "groups_by_length",
    "in_memory",
    "instruction_end",
    "instruction_ends",
    "load_model",
    "model_name",
    "model_record",
    "pad_left",
    "post_instruction_tokens",
    "prompt_width",
    "read_answer",
    "release",
    "render",
    "render_turns",
    "separator_length",
    "set_chat",
    "split_thought",
    "template_of",
    "thought_ends",
    "thought_length",
    "token_batch",
]
