"""What a model does: refusal, divergence, correct answers, perplexity, each with its interval."""

from ot_lens.behaviour.capability import capability
from ot_lens.behaviour.classifier import ClassifierJudge
from ot_lens.behaviour.coherence import answer_nll, degenerate, delayed_refusals
from ot_lens.behaviour.completions import completion_stats, load_completions, save_completions
from ot_lens.behaviour.filtering import FILTERS, filter_by_behaviour
from ot_lens.behaviour.harm_question import HarmQuestion, harm_question, harm_score
from ot_lens.behaviour.judge_registry import LazyJudge, judge_names, register_judge
from ot_lens.behaviour.judges import Judge, PhraseJudge, Verdict, agreement, judge_completions
from ot_lens.behaviour.losses import answer_loss, text_loss
from ot_lens.behaviour.next_token import (
    kl_divergence,
    next_token_logprobs,
    refusal_score,
    refusal_token_ids,
    score_from_logprobs,
)
from ot_lens.behaviour.refusal import model_phrases, phrase_list, refuses
from ot_lens.behaviour.token_scores import token_scores
from ot_lens.behaviour.yes_no import YesNoJudge, judge_presets

__all__ = [
    "FILTERS",
    "ClassifierJudge",
    "HarmQuestion",
    "Judge",
    "LazyJudge",
    "PhraseJudge",
    "Verdict",
    "YesNoJudge",
    "agreement",
    "answer_loss",
    "answer_nll",
    "capability",
    "completion_stats",
    "degenerate",
    "delayed_refusals",
    "filter_by_behaviour",
    "harm_question",
    "harm_score",
    "judge_completions",
    "judge_names",
    "judge_presets",
    "kl_divergence",
    "load_completions",
    "model_phrases",
    "next_token_logprobs",
    "phrase_list",
    "refusal_score",
    "refusal_token_ids",
    "refuses",
    "register_judge",
    "save_completions",
    "score_from_logprobs",
    "text_loss",
    "token_scores",
]
