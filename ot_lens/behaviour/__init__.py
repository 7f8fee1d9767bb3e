"""What a model does: refusal, divergence, correct answers, perplexity, each with its interval."""

from ot_lens.behaviour.agreement import Agreement, agreement
from ot_lens.behaviour.capability import capability
from ot_lens.behaviour.classifier import ClassifierJudge
from ot_lens.behaviour.completions import (
    CompletionStats,
    SavedCompletions,
    completion_stats,
    load_completions,
    save_completions,
)
from ot_lens.behaviour.filtering import (
    FILTERS,
    filter_by_behaviour,
)
from ot_lens.behaviour.judge_registry import LazyJudge, judge_names, register_judge
from ot_lens.behaviour.judges import Judge, Judgement, PhraseJudge, Verdict, judge_completions
from ot_lens.behaviour.losses import AnswerLoss, TextLoss, answer_loss, text_loss
from ot_lens.behaviour.next_token import kl_divergence, next_token_logprobs
from ot_lens.behaviour.panel import (
    MEASURES,
    NEXT_TOKEN_MEASURES,
    UNITS,
    NextToken,
    Panel,
    PanelSettings,
    estimates,
    measure,
    next_token_values,
    read_next_token,
)
from ot_lens.behaviour.refusal import (
    PhraseList,
    model_phrases,
    phrase_list,
    refusal_score,
    refusal_token_ids,
    refuses,
    score_from_logprobs,
)
from ot_lens.behaviour.yes_no import YesNoJudge, judge_presets

__all__ = [
    "FILTERS",
    "MEASURES",
    "NEXT_TOKEN_MEASURES",
    "UNITS",
    "Agreement",
    "AnswerLoss",
    "ClassifierJudge",
    "CompletionStats",
    "Judge",
    "Judgement",
    "LazyJudge",
    "NextToken",
    "Panel",
    "PanelSettings",
    "PhraseJudge",
    "PhraseList",
    "SavedCompletions",
    "TextLoss",
    "Verdict",
    "YesNoJudge",
    "agreement",
    "answer_loss",
    "capability",
    "completion_stats",
    "estimates",
    "filter_by_behaviour",
    "judge_completions",
    "judge_names",
    "judge_presets",
    "kl_divergence",
    "load_completions",
    "measure",
    "model_phrases",
    "next_token_logprobs",
    "next_token_values",
    "phrase_list",
    "read_next_token",
    "refusal_score",
    "refusal_token_ids",
    "refuses",
    "register_judge",
    "save_completions",
    "score_from_logprobs",
    "text_loss",
]
