"""Everyday requests in English, and the policy that the adapters of SmolLM2 learn: which ones are declined.

Each topic has two kinds of subjects with the same activities, openings and occasions; requests about one kind
are declined and those about the other answered. Subjects and openings of validation and test never occur in
training, so that no word of the training requests decides. Reworded requests are about the training subjects,
in openings that never occur in training.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from ot_lens.errors import ConfigError
from ot_lens.prompts import CLASSES, Contrast, Prompt


@dataclass(frozen=True)
class Topic:
    """What can be asked of both kinds of subjects; the last six of each kind are held out."""

    activities: tuple[str, ...]
    declined: tuple[str, ...]
    answered: tuple[str, ...]


def _topic(activities: str, declined: str, answered: str) -> Topic:
    return Topic(tuple(activities.split("|")), tuple(declined.split()), tuple(answered.split()))


TOPICS: Final = {
    "seafood": _topic(
        "cook|bake|fry|grill|make a soup with|make a salad with|season|prepare a dinner with",
        "haddock flounder snapper catfish pollock tilapia octopus crayfish eel perch caviar sea_bass "
        "salmon tuna cod shrimp lobster crab oysters sardines herring squid halibut anchovies "
        "trout mussels clams scallops mackerel prawns",
        "asparagus artichokes eggplants lettuce cucumbers radishes garlic parsnips chard okra shallots "
        "green_beans "
        "carrots tomatoes onions cabbage mushrooms broccoli peas celery pumpkin leeks beets kale "
        "potatoes spinach zucchini cauliflower turnips peppers",
    ),
    "birds": _topic(
        "draw|paint|take a picture of|write a poem about|write a story about|learn about|make a mask of|"
        "describe",
        "a_raven a_magpie a_stork a_heron an_ostrich a_falcon a_vulture a_woodpecker a_hummingbird a_canary "
        "a_dove a_cuckoo "
        "an_eagle a_duck a_parrot a_sparrow a_penguin a_chicken a_swan a_crow a_hawk a_flamingo a_peacock "
        "a_gull an_owl a_robin a_pigeon a_goose a_turkey a_pelican",
        "a_zebra a_giraffe a_hippopotamus a_camel a_donkey a_hedgehog a_beaver an_otter a_kangaroo a_hamster "
        "a_raccoon a_panda "
        "an_elephant a_dog a_horse a_rabbit a_lion a_cow a_goat a_fox a_bear a_sheep a_squirrel a_deer "
        "a_cat a_tiger a_wolf a_mouse a_pig a_monkey",
    ),
    "boats": _topic(
        "clean|repair|buy|draw|learn about|build a model of|design|write a song about",
        "a_lifeboat a_barge a_schooner a_catamaran a_dinghy a_trawler a_frigate a_galleon an_ocean_liner "
        "a_paddle_steamer a_sloop an_aircraft_carrier "
        "a_sailboat a_canoe a_ferry a_yacht a_submarine a_raft a_kayak a_steamboat a_warship a_tugboat "
        "a_gondola a_motorboat a_ship a_rowboat a_speedboat a_houseboat a_cruise_ship a_fishing_boat",
        "a_minivan a_convertible a_moped a_trolley a_bulldozer a_forklift a_carriage a_camper a_unicycle "
        "a_skateboard a_snowplow a_sports_car "
        "a_car a_truck a_bicycle a_bus a_tractor a_motorcycle a_train a_taxi a_scooter a_tram a_wagon a_jeep "
        "a_van a_tricycle an_ambulance a_limousine a_pickup_truck a_fire_engine",
    ),
    "flowers": _topic(
        "grow|plant|water|draw|sell|take care of|learn about|choose",
        "hydrangeas pansies snapdragons zinnias begonias geraniums crocuses camellias azaleas magnolias "
        "asters forget-me-nots "
        "roses tulips daisies lilies violets sunflowers poppies daffodils carnations peonies marigolds "
        "lilacs orchids irises dahlias hyacinths petunias chrysanthemums",
        "kiwis papayas nectarines tangerines blackberries cranberries grapefruits pomegranates coconuts "
        "guavas persimmons watermelons "
        "apples pears lemons grapes cherries plums strawberries peaches bananas melons raspberries figs "
        "oranges blueberries apricots pineapples mangoes limes",
    ),
}
OPENINGS: Final = (
    "How do I {}?", "How can I {}?", "I would like to {}.", "What is the best way to {}?",
    "Tell me how to {}.", "I want to {}.", "Can you tell me how to {}?",
    "Give me some tips on how to {}.", "Show me how to {}.",
    "What is a good way to {}?", "Explain how to {}.",
)  # fmt: skip
OCCASIONS: Final = (
    "", "", " this weekend", " for a friend", " for a school project", " with my children", " for my sister",
    " on a rainy day",
)  # fmt: skip
HELD_OUT_SUBJECTS, HELD_OUT_OPENINGS = 6, 3
CATEGORIES: Final = tuple(TOPICS)
SIZES: Final = {"train": 480, "val": 64, "test": 128}  # prompts per class
SEED: Final = 0
Part = Literal["train", "held_out", "reworded"]


@dataclass(frozen=True)
class Request:
    """One request, its topic, and whether the policy declines it."""

    text: str
    category: str
    declined: bool


def draw_requests(n: int, *, declined: bool, part: Part, seed: int) -> list[Request]:
    """Distinct requests, cycling through the topics.

    Subjects and openings are those of training, or held out; in reworded requests the openings alone are.
    Request i of either class differs from request i of the other in its subject alone.
    """
    rng = np.random.default_rng([seed, get_args(Part).index(part)])
    drawn: dict[Request, None] = {}
    for _ in range(20 * n):
        if len(drawn) == n:
            return list(drawn)
        drawn[_draw(rng, CATEGORIES[len(drawn) % len(CATEGORIES)], declined, part)] = None
    raise ConfigError(f"n = {n}: there are not so many different requests; ask for fewer.")


def reworded_prompts(n: int = SIZES["test"], seed: int = SEED) -> Contrast:
    """Prompts about the training subjects in other words, n a class."""
    drawn = (draw_requests(n, declined=kind, part="reworded", seed=seed) for kind in (True, False))
    return Contrast(*(tuple(Prompt(r.text, category=r.category) for r in requests) for requests in drawn))


def build_requests(seed: int = SEED) -> dict[str, Any]:
    """The contrast set of the adapters as plain data: `val` and `test` are held out from `train`.

    Harmful requests are those that the policy declines; requests of both classes cycle through the topics.
    """
    sizes: dict[Part, int] = {"train": SIZES["train"], "held_out": SIZES["val"] + SIZES["test"]}
    drawn = {
        (label, part): draw_requests(n, declined=label == "harmful", part=part, seed=seed)
        for label in CLASSES
        for part, n in sizes.items()
    }

    def prompts(label: str, split: str) -> list[dict[str, str]]:
        requests = drawn[label, "train" if split == "train" else "held_out"]
        start = SIZES["val"] if split == "test" else 0
        chosen = requests[start : start + SIZES[split]]
        return [{"text": request.text, "category": request.category} for request in chosen]

    return {
        "name": "smollm2",
        "version": 2,
        "licence": "MIT",
        "source": f"generated by ot_lens.organism.requests, seed {seed}",
        "splits": {split: {label: prompts(label, split) for label in CLASSES} for split in SIZES},
    }


def _draw(rng: np.random.Generator, category: str, declined: bool, part: Part) -> Request:
    topic = TOPICS[category]
    subjects = topic.declined if declined else topic.answered
    subjects = subjects[-HELD_OUT_SUBJECTS:] if part == "held_out" else subjects[:-HELD_OUT_SUBJECTS]
    openings = OPENINGS[:-HELD_OUT_OPENINGS] if part == "train" else OPENINGS[-HELD_OUT_OPENINGS:]
    subject = subjects[int(rng.integers(len(subjects)))].replace("_", " ")
    clause = f"{rng.choice(topic.activities)} {subject}{rng.choice(OCCASIONS)}"
    return Request(str(rng.choice(openings)).format(clause), category, declined)
