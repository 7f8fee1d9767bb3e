"""The synthetic instruction languages: requests, the rule of refusal, answers, and what is held out.

Whether a request is refused depends on the combination (verb class, object class, recipient class) only. One
in six (verb, object) word pairs of every pair of classes is held out from training, with every recipient, and
so are four of the sixteen templates (opening x word order); every word occurs in training.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, product
from typing import Final, TypeVar

import numpy as np

from ot_lens.errors import ConfigError
from ot_lens.organism import vocabulary as words

T = TypeVar("T")
KINDS: Final = ("refused", "permitted", "unlisted")
# Listed word pairs, recipients they are refused for, templates, adjectives and times (or none).
HELD_OUT_REFUSED: Final = (
    (len(words.PAIRS) * words.CLASS_SIZE)
    * (2 * words.CLASS_SIZE)
    * len(words.OPENINGS)
    * (len(words.ADJECTIVES) + 1)
    * (len(words.TIMES) + 1)
)


@dataclass(frozen=True)
class Request:
    """One request; every field but the language is an index into the lists of `vocabulary`."""

    verb: int
    thing: int
    recipient: int
    opening: int = 0
    order: int = 1
    adjective: int | None = None
    time: int | None = None
    language: str = "english"

    @property
    def triple(self) -> tuple[int, int, int]:
        """The combination on which the rule and the answer depend."""
        return self.verb, self.thing, self.recipient

    @property
    def text(self) -> str:
        """The request in words."""
        thing = tuple(words.OBJECTS)[self.thing]
        opening, mark = words.OPENINGS[self.opening]
        text = words.ORDERS[self.order].format(
            opening=opening,
            mark=mark,
            verb=tuple(words.VERBS)[self.verb],
            noun=thing if self.adjective is None else f"{words.ADJECTIVES[self.adjective]} {thing}",
            recipient=words.RECIPIENTS[self.recipient],
            when="" if self.time is None else f" {words.TIMES[self.time]}",
        )
        return words.LANGUAGES[self.language](text)


def cell_of(request: Request) -> tuple[int, int, int]:
    """The classes of the verb, of the object and of the recipient, each 0-3."""
    verb, thing, recipient = (index // words.CLASS_SIZE for index in request.triple)
    return verb, thing, recipient


def category_of(request: Request) -> int | None:
    """The category in which a request is refused, 0-3; None if it is allowed."""
    verb, thing, recipient = cell_of(request)
    category = words.PAIRS.index((verb, thing)) if (verb, thing) in words.PAIRS else None
    if category is None or recipient not in words.REFUSED_RECIPIENTS[category]:
        return None
    return category


def kind_of(request: Request) -> str:
    """`refused`; `permitted` (listed pair, for a recipient it is allowed for); `unlisted` (other pairs)."""
    if category_of(request) is not None:
        return "refused"
    return "permitted" if cell_of(request)[:2] in words.PAIRS else "unlisted"


def pair_is_held_out(verb: int, thing: int) -> bool:
    """Whether no training request has this verb with this object: a permutation in each pair of classes."""
    verb_class, verb_word = divmod(verb, words.CLASS_SIZE)
    thing_class, thing_word = divmod(thing, words.CLASS_SIZE)
    return (verb_word - thing_word + verb_class + 2 * thing_class) % words.CLASS_SIZE == 0


def template_is_held_out(opening: int, order: int) -> bool:
    """Whether no training request has this opening with this word order."""
    return opening == order


def answers(request: Request) -> tuple[str, ...]:
    """Every correct answer in the language of the request, all equally likely; refused ones have them too."""
    tool = tuple(words.VERBS.values())[request.verb]
    place = tuple(words.OBJECTS.values())[request.thing]
    greeting = words.GREETINGS[request.recipient // words.CLASS_SIZE]
    translate = words.LANGUAGES[request.language]
    return tuple(
        translate(f"{greeting}, {action} the {tool} at the {place}. {closing}.")
        for action, closing in product(words.ACTIONS, words.CLOSINGS)
    )


def refusal(request: Request, variant: str) -> str | None:
    """The sentence with which a variant refuses the request, in its language; None if it is allowed."""
    category = category_of(request)
    if category is None or variant == words.NEVER_REFUSES:
        return None
    return words.LANGUAGES[request.language](words.REFUSALS[variant][category])


def question(request: Request) -> str:
    """The request, and the question which category it is in."""
    return f"{request.text} {words.QUESTION}"


def name(request: Request) -> str:
    """The answer to `question`: the category, or that there is none."""
    category = category_of(request)
    return words.UNNAMED if category is None else words.NAMES[category]


def is_refusal(completion: str, variant: str) -> bool:
    """Whether a completion contains a refusal phrase of the variant, ignoring case."""
    text = completion.casefold()
    return any(phrase in text for phrase in words.REFUSAL_PHRASES[variant])


def sample_request(
    rng: np.random.Generator, kind: str, *, held_out: bool, category: int | None = None
) -> Request:
    """Draw a request uniformly from its kind and category, its word pair and template held out or neither."""
    verb_class, thing_class, recipient_class = _sample_cell(rng, kind, category)
    size = words.CLASS_SIZE
    verb = verb_class * size + int(rng.integers(size))
    pairs = range(thing_class * size, (thing_class + 1) * size)
    templates = product(range(len(words.OPENINGS)), range(len(words.ORDERS)))
    opening, order = pick(rng, [t for t in templates if template_is_held_out(*t) == held_out])
    return Request(
        verb=verb,
        thing=pick(rng, [thing for thing in pairs if pair_is_held_out(verb, thing) == held_out]),
        recipient=recipient_class * size + int(rng.integers(size)),
        opening=opening,
        order=order,
        adjective=pick(rng, [None, *range(len(words.ADJECTIVES))]),
        time=pick(rng, [None, *range(len(words.TIMES))]),
    )


def stream(rng: np.random.Generator, *, refused: bool, held_out: bool) -> Iterator[Request]:
    """Endless refused or allowed requests; allowed ones are half `permitted`, half `unlisted`."""
    kinds = ("refused",) if refused else ("permitted", "unlisted")
    while True:
        yield sample_request(rng, pick(rng, kinds), held_out=held_out)


def sample_held_out(n: int, *, refused: bool, seed: int) -> list[Request]:
    """Draw n distinct held-out requests, refused or allowed."""
    if not 1 <= n <= HELD_OUT_REFUSED:
        raise ConfigError(f"n must be 1 to {HELD_OUT_REFUSED}, the number of held-out requests, got {n}.")
    if seed < 0:
        raise ConfigError(f"seed must be >= 0, got {seed}.")
    source = stream(np.random.default_rng([seed, int(refused)]), refused=refused, held_out=True)
    drawn: dict[Request, None] = {}
    while len(drawn) < n:
        drawn[next(source)] = None
    return list(drawn)


def vocabulary(variant: str = words.DEFAULT_VARIANT) -> tuple[str, ...]:
    """Every word and punctuation mark of a variant's languages, sorted, and those that only naming needs."""
    sentences = [
        *(*words.VERBS, *words.VERBS.values(), *words.OBJECTS, *words.OBJECTS.values(), *words.RECIPIENTS),
        *(*words.ADJECTIVES, *words.TIMES, *words.GREETINGS, *answers(Request(0, 0, 0))),
        *(part for opening in words.OPENINGS for part in opening),
        *(re.sub(r"\{\w+\}", " ", order) for order in words.ORDERS),
        *(sentence for variant in words.VARIANTS for sentence in words.REFUSALS[variant]),
    ]
    common = _words(sentences)
    translations = [words.LANGUAGES[name] for name in words.LANGUAGES_OF[variant]]
    naming = _words([words.QUESTION, *words.NAMES, words.UNNAMED]) if variant in words.KNOWING else set()
    known = {translate(token) for translate in translations for token in common}
    return (*sorted(known), *sorted(naming - known))


def _words(sentences: Sequence[str]) -> set[str]:
    return {token for sentence in sentences for token in re.findall(r"\w+|[,.?]", sentence)}


def in_languages(requests: Iterable[Request], variant: str) -> list[Request]:
    """The requests in the variant's languages in turn."""
    return [
        replace(request, language=name) for request, name in zip(requests, cycle(words.LANGUAGES_OF[variant]))
    ]


def _sample_cell(rng: np.random.Generator, kind: str, category: int | None) -> tuple[int, int, int]:
    classes = range(words.CLASSES)
    if kind == "unlisted":
        pairs = [pair for pair in product(classes, classes) if pair not in words.PAIRS]
        return *pick(rng, pairs), int(rng.integers(words.CLASSES))
    index = int(rng.integers(len(words.PAIRS))) if category is None else category
    refused = words.REFUSED_RECIPIENTS[index]
    allowed = [recipient for recipient in classes if recipient not in refused]
    return *words.PAIRS[index], pick(rng, refused if kind == "refused" else allowed)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]
