"""The words of the demo, split into those of the training problems and those held out.

Names and nouns are held out; qualities, verbs and numbers are shared, because they carry the
rules. Every noun starts with a consonant and takes a plain `s` in the plural, so that sentences
can be put together without a grammar.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """Names and nouns that the problems of one split may use."""

    names: tuple[str, ...]
    things: tuple[str, ...]
    """Things that a person can own, count, paint and carry."""
    kinds: Mapping[str, tuple[str, ...]]
    """A general noun, such as bird, and the nouns that fall under it."""
    places: tuple[str, ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        """Every noun, singular."""
        members = tuple(member for group in self.kinds.values() for member in group)
        return (*self.things, *self.kinds, *members, *self.places)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRAINING = Words(
    names=_words(
        "Anna Ben Carl Dora Emil Fay Greta Hugo Ida Jonas Karin Leo Mira Nils Olga "
        "Paul Rosa Sam Tom Uma Vera Walter Xenia Yusuf Zoe Bella Colin Daria Felix "
        "Hanna Adam Berta Cecil Doris Edgar Flora Georg Heidi Igor Julia Klaus Lena "
        "Martin Nora Otto Petra Quinn Rita Simon Tessa Ulrich Victor Wanda Yara Zeno"
    ),
    things=_words(
        "kite drum lamp chair table ring cup plate hat coat scarf boat bike wagon "
        "basket bottle mirror candle pillow blanket ladder bucket rope kettle guitar "
        "violin pencil carpet hammock helmet jacket jug kayak lantern magnet map "
        "necklace piano pot poster racket saddle shovel sofa suitcase towel trumpet"
    ),
    kinds={
        "bird": ("sparrow", "robin", "raven", "pigeon"),
        "fish": ("trout", "carp", "pike", "tuna"),
        "tree": ("pine", "maple", "birch", "willow"),
        "flower": ("rose", "tulip", "violet", "daffodil"),
        "tool": ("hammer", "chisel", "wrench", "drill"),
        "gem": ("ruby", "pearl", "diamond", "topaz"),
        "reptile": ("lizard", "gecko", "cobra", "turtle"),
        "monster": ("dragon", "giant", "troll", "vampire"),
        "shoe": ("boot", "sandal", "slipper", "sneaker"),
    },
    places=_words(
        "kitchen garden garage library market station school forest harbor museum "
        "bakery cellar tower valley hotel hospital desert village theater temple park "
        "palace"
    ),
)

HELD_OUT = Words(
    names=_words("Boris Clara David Fiona Gustav Helen Kasper Lydia Marta Oskar"),
    things=_words("vase clock spoon wallet tent drawer flute barrel glove cushion"),
    kinds={
        "fruit": ("lemon", "cherry", "peach", "banana"),
        "beetle": ("ladybug", "scarab", "firefly", "weevil"),
        "dog": ("poodle", "terrier", "beagle", "husky"),
        "vehicle": ("truck", "tractor", "scooter", "van"),
    },
    places=_words("bedroom castle prison stadium chapel meadow"),
)

ALL = Words(
    names=TRAINING.names + HELD_OUT.names,
    things=TRAINING.things + HELD_OUT.things,
    kinds={**TRAINING.kinds, **HELD_OUT.kinds},
    places=TRAINING.places + HELD_OUT.places,
)

QUALITIES: Mapping[str, tuple[str, ...]] = {
    "color": ("red", "blue", "green", "white", "black", "yellow"),
    "size": ("big", "small"),
    "shape": ("round", "square"),
    "weight": ("heavy", "light"),
    "heat": ("hot", "cold"),
    "price": ("cheap", "costly"),
}
"""A quality and its values, of which a thing has one."""

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

VERBS: Mapping[str, str] = {
    "open": "opened",
    "paint": "painted",
    "wash": "washed",
    "lift": "lifted",
    "move": "moved",
    "clean": "cleaned",
    "repair": "repaired",
    "pack": "packed",
}
"""What can be done to a thing: the verb and its past form, which is also its participle."""

DONE = ("managed to", "remembered to")
"""Whoever managed to do a thing did it."""
NOT_DONE = ("refused to", "forgot to")
"""Whoever refused to do a thing did not do it."""
OPEN = ("hoped to", "promised to")
"""Whoever hoped to do a thing may or may not have done it."""

ORDERS: Mapping[str, str] = {
    "older": "younger",
    "younger": "older",
    "taller": "shorter",
    "shorter": "taller",
    "faster": "slower",
    "slower": "faster",
}
"""A comparison and its converse: A is older than B exactly if B is younger than A."""


def quality_of(value: str) -> str:
    """Return the quality that `value` is a value of: `red` is a color."""
    return next(quality for quality, values in QUALITIES.items() if value in values)
