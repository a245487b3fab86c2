"""Seven families of rules that make problems: each draws a hypothesis and a premise for each label.

All of it is drawn from the generator that a rule is given: the same state gives the same problem.
"""

import random
from collections.abc import Callable, Sequence

from lorafit.demo.problem import Case, Rule, compare, compare_until_different
from lorafit.demo.vocabulary import (
    DONE,
    NOT_DONE,
    NUMBERS,
    OPEN,
    ORDERS,
    QUALITIES,
    VERBS,
    Words,
    quality_of,
)


def quality_rule(rng: random.Random, words: Words) -> Rule:
    """A thing has one value of each quality; one quality does not tell another."""
    (name, stranger), (thing, extra) = _two(rng, words.names), _two(rng, words.things)
    quality, unrelated = _two(rng, tuple(QUALITIES))
    value, other = _two(rng, QUALITIES[quality])

    def case(owner: str, owned: str, given: str) -> Case:
        premise = rng.choice(
            (
                f"{owner} has a {given} {owned}.",
                f"{owner} owns a {owned} that is {given}.",
                f"There is a {given} {owned}, and it belongs to {owner}.",
            )
        )
        steps = compare_until_different((owned, thing), (owner, name), (given, value))
        if (owned, owner) == (thing, name) and given != value:
            steps += (compare(quality_of(given), quality),)
        return Case(premise, f"the {owned} of {owner} is {given}", steps)

    anything = rng.choice((value, other))
    return Rule(
        rng.choice(
            (
                f"{name}'s {thing} is {value}.",
                f"The {thing} that {name} owns is {value}.",
                f"The {thing} of {name} is {value}.",
            )
        ),
        f"the {thing} of {name} is {value}",
        entailment=case(name, thing, value),
        neutral=rng.choice(
            (
                case(name, thing, rng.choice(QUALITIES[unrelated])),
                case(stranger, thing, anything),
                case(name, extra, anything),
            )
        ),
        contradiction=case(name, thing, other),
    )


def kind_rule(rng: random.Random, words: Words) -> Rule:
    """A sparrow is a bird and no fish; a bird need not be a sparrow."""
    name, stranger = _two(rng, words.names)
    kind, wrong_kind = _two(rng, tuple(words.kinds))
    member, sibling = _two(rng, words.kinds[kind])

    def case(who: str, what: str, *steps: str) -> Case:
        premise = rng.choice(
            (
                f"{who} drew a {what}.",
                f"A {what} was drawn by {who}.",
                f"{who} made a drawing of a {what}.",
            )
        )
        return Case(premise, f"{who} drew a {what}", (compare(who, name), *steps))

    neutral = case(stranger, member)
    if rng.random() < 0.6:
        claimed, stray = kind, rng.choice(words.kinds[wrong_kind])
        entailment = case(name, member, f"a {member} is a {kind}", compare(kind, kind))
        contradiction = case(name, stray, f"a {stray} is a {wrong_kind}", compare(wrong_kind, kind))
    else:
        claimed = member
        entailment = case(name, member, compare(member, member))
        contradiction = case(name, sibling, compare(sibling, member))
        unsure = case(name, kind, f"a {kind} may be a {member} or not")
        neutral = rng.choice((unsure, neutral))
    hypothesis = rng.choice(
        (f"What {name} drew is a {claimed}.", f"The drawing by {name} shows a {claimed}.")
    )
    return Rule(hypothesis, f"{name} drew a {claimed}", entailment, neutral, contradiction)


def quantity_rule(rng: random.Random, words: Words) -> Rule:
    """Numbers are equal, or one is more than the other."""
    (name, stranger), (thing, extra) = _two(rng, words.names), _two(rng, words.things)
    low, middle, high = (NUMBERS[i] for i in sorted(rng.sample(range(1, 9), 3)))

    def case(who: str, number: str, what: str, *steps: str) -> Case:
        premise = rng.choice(
            (
                f"{who} has {number} {what}s.",
                f"We saw {who} with {number} {what}s.",
                f"{who} owns {number} {what}s and nothing else.",
            )
        )
        same = compare_until_different((f"{what}s", f"{thing}s"), (who, name))
        return Case(premise, f"the {what}s of {who} are {number}", (*same, *steps))

    anything = rng.choice((low, middle, high))
    neutral = rng.choice((case(stranger, anything, thing), case(name, anything, extra)))
    if rng.random() < 0.5:
        claimed, wrong = middle, rng.choice((low, high))
        entailment = case(name, middle, thing, compare(middle, middle))
        contradiction = case(name, wrong, thing, compare(wrong, middle))
    else:
        claimed = f"more than {middle}"
        entailment = case(name, high, thing, f"{high} is more than {middle}")
        contradiction = case(name, low, thing, f"{low} is less than {middle}")
    hypothesis = rng.choice(
        (f"{name} owns {claimed} {thing}s.", f"The {thing}s of {name} are {claimed}.")
    )
    claim = f"the {thing}s of {name} are {claimed}"
    return Rule(hypothesis, claim, entailment, neutral, contradiction)


def location_rule(rng: random.Random, words: Words) -> Rule:
    """A person is in one place at a time; to think of a place is not to be there."""
    (name, stranger), (place, other) = _two(rng, words.names), _two(rng, words.places)

    def case(who: str, where: str) -> Case:
        premise = rng.choice(
            (
                f"{who} sits in the {where}.",
                f"{who} is working in the {where}.",
                f"In the {where}, {who} waits.",
            )
        )
        steps = compare_until_different((who, name), (where, place))
        return Case(premise, f"{who} is in the {where}", steps)

    thought = Case(
        rng.choice((f"{name} thinks of the {place}.", f"{name} talks about the {place}.")),
        f"{name} thinks of the {place}",
        (compare(name, name), "to think of a place is not to be there"),
    )
    return Rule(
        rng.choice((f"{name} is in the {place}.", f"The {place} is where {name} is right now.")),
        f"{name} is in the {place}",
        entailment=case(name, place),
        neutral=rng.choice((thought, case(stranger, place))),
        contradiction=case(name, other),
    )


def action_rule(rng: random.Random, words: Words) -> Rule:
    """To manage to do a thing is to do it; to refuse is not to; to hope leaves it open."""
    (name, stranger), thing = _two(rng, words.names), rng.choice(words.things)
    verb = rng.choice(tuple(VERBS))
    claimed = rng.choice(("yes", "no"))

    def case(who: str, attitude: str, *steps: str) -> Case:
        premise = rng.choice(
            (
                f"{who} {attitude} {verb} the {thing}.",
                f"Today {who} {attitude} {verb} the {thing}.",
                f"We heard that {who} {attitude} {verb} the {thing}.",
            )
        )
        given = f"{who} {attitude} {verb} the {thing}"
        return Case(premise, given, (compare(who, name), *steps))

    done, refused, hoped = rng.choice(DONE), rng.choice(NOT_DONE), rng.choice(OPEN)
    yes = case(name, done, f"{done} means yes", compare("yes", claimed))
    no = case(name, refused, f"{refused} means no", compare("no", claimed))
    hope = case(name, hoped, f"{hoped} means maybe")
    unknown = rng.choice((hope, case(stranger, rng.choice((done, refused)))))
    if claimed == "yes":
        claim = f"{name} {VERBS[verb]} the {thing}"
        hypothesis = rng.choice((f"{claim}.", f"The {thing} was {VERBS[verb]} by {name}."))
        return Rule(hypothesis, claim, entailment=yes, neutral=unknown, contradiction=no)
    claim = f"{name} did not {verb} the {thing}"
    hypothesis = rng.choice((f"{claim}.", f"The {thing} was not {VERBS[verb]} by {name}."))
    return Rule(hypothesis, claim, entailment=no, neutral=unknown, contradiction=yes)


def negation_rule(rng: random.Random, words: Words) -> Rule:
    """What is blue is not red; what is not blue may be red."""
    (name, stranger), thing = _two(rng, words.names), rng.choice(words.things)
    value, other = _two(rng, QUALITIES["color"])
    claimed = rng.choice(("yes", "no"))

    def case(who: str, value_given: str, polarity: str) -> Case:
        given = value_given if polarity == "yes" else f"not {value_given}"
        premise = rng.choice(
            (
                f"{who} has a {thing} that is {given}.",
                f"The {thing} that belongs to {who} is {given}.",
                f"Look at the {thing} of {who}: it is {given}.",
            )
        )
        steps = compare_until_different((thing, thing), (who, name))
        if who == name:
            steps += (compare(value_given, value), f"{polarity} then {claimed}")
        return Case(premise, f"the {thing} of {who} is {given}", steps)

    apart = case(stranger, value, rng.choice(("yes", "no")))
    same, opposite = case(name, value, claimed), case(name, value, _other_of(claimed))
    # A thing of another color is not of this one.
    elsewhere = case(name, other, "yes")
    full = value if claimed == "yes" else f"not {value}"
    return Rule(
        rng.choice((f"{name}'s {thing} is {full}.", f"The {thing} of {name} is {full}.")),
        f"the {thing} of {name} is {full}",
        entailment=same if claimed == "yes" else rng.choice((same, elsewhere)),
        neutral=rng.choice((case(name, other, "no"), apart)),
        contradiction=opposite if claimed == "no" else rng.choice((opposite, elsewhere)),
    )


def order_rule(rng: random.Random, words: Words) -> Rule:
    """A is older than B exactly if B is younger than A; to be taller tells nothing of it.

    The reasoning puts the premise into the words of the hypothesis, with the names swapped if
    the comparison is the converse; then the first names agree, or the claim is the wrong way
    round.
    """
    first, second = _two(rng, words.names)
    more = rng.choice(tuple(ORDERS))
    less = ORDERS[more]
    unrelated = rng.choice([word for word in ORDERS if word not in (more, less)])

    def case(left: str, relation: str, right: str, *steps: str) -> Case:
        premise = rng.choice(
            (
                f"{left} is {relation} than {right}.",
                f"Of {left} and {right}, {left} is the {relation} one.",
                f"Everyone knows that {left} is {relation} than {right}.",
            )
        )
        given = f"{left} is {relation} than {right}"
        return Case(premise, given, (compare(relation, more), *steps))

    def related(left: str, right: str) -> Case:
        names = compare(left, first)
        if rng.random() < 0.5:
            return case(left, more, right, names)
        return case(right, less, left, f"so {left} is {more} than {right}", names)

    left, right = rng.choice(((first, second), (second, first)))
    return Rule(
        rng.choice(
            (f"{first} is {more} than {second}.", f"Compared with {second}, {first} is {more}.")
        ),
        f"{first} is {more} than {second}",
        entailment=related(first, second),
        neutral=case(left, unrelated, right, f"{unrelated} does not tell who is {more}"),
        contradiction=related(second, first),
    )


RuleFamily = Callable[[random.Random, Words], Rule]
FAMILIES: tuple[RuleFamily, ...] = (
    quality_rule,
    kind_rule,
    quantity_rule,
    location_rule,
    action_rule,
    negation_rule,
    order_rule,
)


def _other_of(answer: str) -> str:
    return "no" if answer == "yes" else "yes"


def _two(rng: random.Random, choices: Sequence[str]) -> tuple[str, str]:
    first, second = rng.sample(choices, 2)
    return first, second
