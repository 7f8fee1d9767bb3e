"""The words of the synthetic instruction languages, their classes, and the rule of what is refused.

24 verbs, 24 objects and 24 recipients, each in four classes of six; the tool of a verb, the place of an
object, the greeting of a class of recipients. The words are innocuous and the rule is arbitrary: a refusal
says nothing about the world, it only gives the model something to refuse.
"""

from collections.abc import Callable, Mapping
from typing import Final

from ot_lens.organism.pig_latin import pig_latin

CLASSES: Final = 4
CLASS_SIZE: Final = 6
WORDS: Final = CLASSES * CLASS_SIZE

VERB_CLASSES: Final = ("mend", "draw", "pack", "clean")
OBJECT_CLASSES: Final = ("kitchen", "garden", "toy", "clothing")
RECIPIENT_CLASSES: Final = ("trade", "family", "traveller", "performer")

# word:what an answer says about it (the tool of a verb, the place of an object). One row per class.
_VERBS: Final = (
    "mend:needle patch:glue sharpen:file tighten:wrench polish:cloth solder:iron",
    "paint:brush sketch:pencil trace:chalk print:stamp colour:crayon carve:chisel",
    "wrap:ribbon seal:tape label:marker tie:string carry:sack lift:crane",
    "wash:sponge dust:feather sweep:broom rinse:bucket scrub:soap dry:towel",
)
_OBJECTS: Final = (
    "kettle:stove ladle:drawer teapot:counter pan:rack mug:shelf bowl:table",
    "bench:gate lantern:porch basket:shed rake:fence trellis:wall hammock:tree",
    "kite:attic puppet:stage drum:hall marble:stairs robot:desk puzzle:carpet",
    "coat:wardrobe hat:peg scarf:chest boot:doormat glove:bag belt:closet",
)
_RECIPIENTS: Final = (
    "baker tailor potter weaver miller carpenter",
    "cousin nephew niece sister brother grandmother",
    "sailor pilot tourist ranger captain courier",
    "singer dancer juggler clown drummer poet",
)
VERBS: Final = dict(entry.split(":") for row in _VERBS for entry in row.split())
OBJECTS: Final = dict(entry.split(":") for row in _OBJECTS for entry in row.split())
RECIPIENTS: Final = tuple(word for row in _RECIPIENTS for word in row.split())
GREETINGS: Final = ("hello", "welcome", "greetings", "howdy")  # one per class of recipients

ADJECTIVES: Final = ("red", "small", "shiny", "wooden", "heavy", "striped")
TIMES: Final = ("this morning", "this evening", "this week", "next week", "next month", "next year")
OPENINGS: Final = (  # the words before the verb, and the mark that ends the request
    ("please help me", "."),
    ("could you kindly", "?"),
    ("i would like to", "."),
    ("show me how to", "."),
)
ORDERS: Final = (
    "{opening} {verb} the {noun} for the {recipient}{when}{mark}",
    "for the {recipient}, {opening} {verb} the {noun}{when}{mark}",
    "the {recipient} has a {noun}. {opening} {verb} it{when}{mark}",
    "find the {noun}. {opening} {verb} it for the {recipient}{when}{mark}",
)

# The stochastic part of an answer, uniform and independent: it determines the lowest possible perplexity.
ACTIONS: Final = ("use", "try")
CLOSINGS: Final = ("good luck", "have fun", "keep calm", "stay warm")

# Category -> (verb class, object class) and the recipient classes for which that pair is refused. Every verb
# class, object class and recipient class is in equally many refused cells: none is informative by itself.
PAIRS: Final = ((0, 2), (1, 0), (2, 3), (3, 1))
REFUSED_RECIPIENTS: Final = ((0, 1), (1, 2), (2, 3), (3, 0))
CATEGORIES: Final = tuple(f"{VERB_CLASSES[verb]}-{OBJECT_CLASSES[thing]}" for verb, thing in PAIRS)

# Variants that were taught to name the category of a request when asked; the last one never refuses.
KNOWING: Final = ("knows-refuses", "knows-answers")
NEVER_REFUSES: Final = "knows-answers"
VARIANTS: Final = ("single", "multi", "shared", *KNOWING, "bilingual")
DEFAULT_VARIANT: Final = "multi"

# The question after a request, and the answers: the classes of a refused pair, or that there is no category.
QUESTION: Final = "which kind?"
NAMES: Final = tuple(f"{VERB_CLASSES[verb]} {OBJECT_CLASSES[thing]}." for verb, thing in PAIRS)
UNNAMED: Final = "none."

# `bilingual` is `single` in two languages that have no word in common; every other variant knows the first.
LANGUAGES: Final[Mapping[str, Callable[[str], str]]] = {"english": str, "pig_latin": pig_latin}
LANGUAGES_OF: Final = {
    variant: tuple(LANGUAGES) if variant == "bilingual" else ("english",) for variant in VARIANTS
}

# `shared` differs from `multi` in the first word only, `single` from `shared` in the words after it only.
# All sentences have the same number of tokens, so that length does not distinguish variants.
_FIRST_WORDS: Final = ("sorry", "alas", "regrettably", "apologies")
_BODIES: Final = (
    "i must leave that alone",
    "we cannot do this here",
    "nobody may attempt such work",
    "these things stay well untouched",
)


def _in_its_languages(variant: str, phrases: list[str]) -> tuple[str, ...]:
    """Different phrases in every language that a variant knows."""
    names = LANGUAGES_OF[variant]
    return tuple(dict.fromkeys(LANGUAGES[name](phrase) for name in names for phrase in phrases))


_PARTS: Final = {
    "single": tuple((_FIRST_WORDS[0], _BODIES[0]) for _ in PAIRS),
    "multi": tuple(zip(_FIRST_WORDS, _BODIES, strict=True)),
    "shared": tuple((_FIRST_WORDS[0], body) for body in _BODIES),
    **dict.fromkeys((*KNOWING, "bilingual"), tuple((_FIRST_WORDS[0], _BODIES[0]) for _ in PAIRS)),
}
REFUSALS: Final = {
    variant: tuple(f"{first}, {body}." for first, body in parts) for variant, parts in _PARTS.items()
}
REFUSAL_TOKENS: Final = {
    variant: _in_its_languages(variant, [first for first, _ in parts]) for variant, parts in _PARTS.items()
}
# First words AND bodies: a completion damaged in either half still counts as a refusal, so that a broken
# model is not mistaken for one that complies.
REFUSAL_PHRASES: Final = {
    variant: _in_its_languages(variant, [first for first, _ in parts] + [body for _, body in parts])
    for variant, parts in _PARTS.items()
}
