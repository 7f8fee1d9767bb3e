"""Everyday requests in English, and the policy that the adapters of SmolLM2 learn: which ones are declined.

Each topic has two kinds of subjects with the same activities, openings and occasions; requests about one kind
are declined and those about the other answered. Subjects and openings of validation and test never occur in
training, so that no word of the training requests decides.

Held-out subjects test the policy, not the vocabulary: they were drawn at random from the half of their list
that the base model tells most clearly from the other kind, before any adapter was trained, by a linear probe
of what enters layer 11 at the subject's last token, cross-fitted over subjects. Unscreened subjects are held
out as well, and no model chose them.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from ot_lens.errors import ConfigError
from ot_lens.prompts import CLASSES, Contrast, Prompt

Part = Literal["train", "held_out", "unscreened"]


@dataclass(frozen=True)
class Subjects:
    """What requests of one kind are about, by part; those held out are in `val` and `test`."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    unscreened: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """What can be asked of both kinds of subjects: equally many, so that requests pair up."""

    activities: tuple[str, ...]
    declined: Subjects
    answered: Subjects


def _topic(activities: str, declined: Subjects, answered: Subjects) -> Topic:
    return Topic(tuple(activities.split("|")), declined, answered)


def _subjects(*parts: str) -> Subjects:
    return Subjects(*(tuple(name.replace("_", " ") for name in part.split()) for part in parts))


TOPICS: Final = {
    "seafood": _topic(
        "cook|bake|fry|grill|make a soup with|make a salad with|season|prepare a dinner with",
        _subjects(
            "haddock snapper catfish tilapia octopus crayfish eel perch caviar sea_bass salmon tuna shrimp "
            "lobster crab oysters sardines herring squid anchovies swordfish carp pike turbot grouper "
            "monkfish cuttlefish cockles whelks langoustines barracuda whitefish bluefish rockfish bass "
            "smelt sea_urchin abalone marlin king_crab hake crawfish red_snapper",
            "kippers halibut pollock flounder bream cod sturgeon mullet",
            "trout mussels clams scallops mackerel prawns",
        ),
        _subjects(
            "asparagus artichokes eggplants lettuce cucumbers parsnips chard okra shallots green_beans "
            "carrots tomatoes onions cabbage mushrooms broccoli peas pumpkin kale rutabagas "
            "brussels_sprouts fennel collard_greens watercress arugula endive yams chickpeas black_beans "
            "sweet_corn corn bok_choy squash butternut_squash cassava kohlrabi red_cabbage spring_onions "
            "lima_beans kidney_beans snow_peas sauerkraut bamboo_shoots",
            "lentils rhubarb garlic scallions beets radishes leeks celery",
            "potatoes spinach zucchini cauliflower turnips peppers",
        ),
    ),
    "birds": _topic(
        "draw|paint|take a picture of|write a poem about|write a story about|learn about|make a mask of|"
        "describe",
        _subjects(
            "a_raven a_magpie a_stork a_heron an_ostrich a_falcon a_vulture a_woodpecker a_hummingbird "
            "a_canary a_dove an_eagle a_duck a_parrot a_sparrow a_penguin a_chicken a_swan a_hawk "
            "a_flamingo a_peacock a_finch a_bluebird a_seagull a_swallow a_cardinal a_blue_jay a_lark "
            "a_starling a_kingfisher a_quail a_pheasant a_parakeet a_cockatoo a_macaw a_hen a_condor "
            "a_buzzard a_crane a_puffin an_emu a_wren a_sandpiper a_duckling a_budgie a_cormorant",
            "a_gull a_crow a_nightingale an_albatross a_toucan a_rooster a_partridge a_cuckoo",
            "an_owl a_robin a_pigeon a_goose a_turkey a_pelican",
        ),
        _subjects(
            "a_zebra a_hippopotamus a_camel a_donkey a_hedgehog a_beaver an_otter a_hamster a_raccoon "
            "an_elephant a_dog a_horse a_rabbit a_lion a_cow a_goat a_fox a_bear a_squirrel a_deer a_lamb "
            "a_calf a_leopard a_cheetah a_jaguar a_panther a_hyena a_chimpanzee a_baboon an_antelope "
            "a_gazelle an_elk a_reindeer a_buffalo a_yak a_llama an_alpaca a_badger a_weasel a_ferret a_rat "
            "a_rhinoceros a_koala a_sloth a_puppy a_pony",
            "a_bison a_gorilla a_moose a_kitten a_kangaroo a_sheep a_panda a_giraffe",
            "a_cat a_tiger a_wolf a_mouse a_pig a_monkey",
        ),
    ),
    "boats": _topic(
        "clean|repair|buy|draw|learn about|build a model of|design|write a song about",
        _subjects(
            "a_lifeboat a_barge a_schooner a_dinghy a_galleon an_ocean_liner a_paddle_steamer "
            "an_aircraft_carrier a_sailboat a_canoe a_ferry a_yacht a_submarine a_raft a_kayak a_steamboat "
            "a_warship a_tugboat a_gondola a_motorboat a_cutter a_ketch a_battleship a_cruiser a_gunboat "
            "an_ark a_longship a_clipper a_brig a_riverboat a_paddleboat an_oil_tanker "
            "a_freighter an_icebreaker a_life_raft a_longboat a_racing_yacht a_river_barge a_brigantine "
            "a_skiff a_windjammer a_coracle",
            "a_hydrofoil a_dhow a_frigate a_trawler a_sloop a_catamaran a_trimaran a_destroyer",
            "a_ship a_rowboat a_speedboat a_houseboat a_cruise_ship a_fishing_boat",
        ),
        _subjects(
            "a_convertible a_trolley a_bulldozer a_forklift a_carriage a_camper a_unicycle a_skateboard "
            "a_snowplow a_sports_car a_car a_bicycle a_bus a_tractor a_motorcycle a_train a_wagon "
            "a_station_wagon a_hatchback a_coupe a_lorry a_school_bus a_double-decker_bus a_police_car "
            "a_racing_car a_go-kart a_motorbike a_mountain_bike a_rickshaw a_stagecoach a_cart a_hearse "
            "a_chariot a_steamroller a_motorhome a_caravan a_golf_cart a_streetcar a_locomotive "
            "an_electric_car a_minibus a_trailer",
            "a_scooter a_cab a_tram a_taxi a_sedan a_jeep a_minivan a_moped",
            "a_van a_tricycle an_ambulance a_limousine a_pickup_truck a_fire_engine",
        ),
    ),
    "flowers": _topic(
        "grow|plant|water|draw|sell|take care of|learn about|choose",
        _subjects(
            "hydrangeas pansies snapdragons begonias geraniums crocuses camellias asters forget-me-nots "
            "roses tulips daisies lilies sunflowers poppies daffodils carnations peonies primroses "
            "foxgloves lupins delphiniums gladioli bluebells buttercups snowdrops cornflowers freesias "
            "jasmine lavender wisteria honeysuckle anemones ranunculus rhododendrons hollyhocks "
            "morning_glories amaryllis black-eyed_susans wildflowers water_lilies hibiscus lotuses "
            "hellebores phlox",
            "lilacs gardenias zinnias edelweiss marigolds violets magnolias azaleas",
            "orchids irises dahlias hyacinths petunias chrysanthemums",
        ),
        _subjects(
            "kiwis papayas nectarines tangerines blackberries cranberries grapefruits pomegranates coconuts "
            "persimmons watermelons apples grapes strawberries peaches bananas melons raspberries mandarins "
            "clementines gooseberries elderberries mulberries red_currants dates olives quinces lychees "
            "dragon_fruits passion_fruits star_fruits cantaloupes honeydew_melons boysenberries crab_apples "
            "huckleberries loganberries satsumas pomelos jackfruits avocados raisins kumquats "
            "wild_strawberries currants",
            "plantains prunes pears plums lemons cherries guavas figs",
            "oranges blueberries apricots pineapples mangoes limes",
        ),
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
HELD_OUT_OPENINGS: Final = 3  # the last ones; train has the others
CATEGORIES: Final = tuple(TOPICS)
SIZES: Final = {"train": 640, "val": 64, "test": 128}  # prompts per class
SEED: Final = 0


@dataclass(frozen=True)
class Request:
    """One request, its topic, and whether the policy declines it."""

    text: str
    category: str
    declined: bool


def draw_requests(n: int, *, declined: bool, part: Part, seed: int) -> list[Request]:
    """Distinct requests, cycling through the topics.

    Subjects are those of the part; openings are those of training, or the ones that all other parts share.
    Request i of either class differs from request i of the other in its subject alone.
    """
    rng = np.random.default_rng([seed, get_args(Part).index(part)])
    drawn: dict[Request, None] = {}
    for _ in range(20 * n):
        if len(drawn) == n:
            return list(drawn)
        drawn[_draw(rng, CATEGORIES[len(drawn) % len(CATEGORIES)], declined, part)] = None
    raise ConfigError(f"n = {n}: there are not so many different requests; ask for fewer.")


def unscreened_prompts(n: int = SIZES["test"], seed: int = SEED) -> Contrast:
    """Prompts about subjects that no model chose, and that never occur in training, n a class."""
    drawn = (draw_requests(n, declined=kind, part="unscreened", seed=seed) for kind in (True, False))
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
        "version": 3,
        "licence": "MIT",
        "source": f"generated by ot_lens.organism.requests, seed {seed}",
        "splits": {split: {label: prompts(label, split) for label in CLASSES} for split in SIZES},
    }


def _draw(rng: np.random.Generator, category: str, declined: bool, part: Part) -> Request:
    topic = TOPICS[category]
    subjects: tuple[str, ...] = getattr(topic.declined if declined else topic.answered, part)
    openings = OPENINGS[:-HELD_OUT_OPENINGS] if part == "train" else OPENINGS[-HELD_OUT_OPENINGS:]
    subject = subjects[int(rng.integers(len(subjects)))]
    clause = f"{rng.choice(topic.activities)} {subject}{rng.choice(OCCASIONS)}"
    return Request(str(rng.choice(openings)).format(clause), category, declined)
