"""Plain text, made by rules, that the base model of the demo is pre-trained on.

What is in it: short documents over the whole vocabulary, held-out names and nouns included, so
that every word has a trained embedding. They state facts (a sparrow is a bird, nine is more than
seven, older is the opposite of younger), tell small stories and ask about them, say one thing in
two ways, repeat lists, and compare two sentences word by word, over kinds too (a pearl is a gem,
gem and reptile differ), saying which words agree and which differ. This is where the model learns
to copy a word from its context and to tell whether two words are the same, whichever they are.

What is not in it: the task. No document has the layout of a problem, or draws a conclusion about
a claim, or one of the three labels. The words of the layout, of the conclusions and of the labels
occur only in repeated lists of random words, so that the tokenizer has them and their embeddings
are trained. A document that happens to contain a premise or a hypothesis of the test set is left
out. Which comparison leads to which label is left for the adapter to learn.
"""

import random
import re
from collections.abc import Callable, Iterator

from lorafit.demo.nli import generate
from lorafit.demo.problem import Problem, compare
from lorafit.demo.vocabulary import (
    ALL,
    DONE,
    NOT_DONE,
    NUMBERS,
    OPEN,
    ORDERS,
    QUALITIES,
    VERBS,
    quality_of,
)

_TASK_WORDS = (
    "Premise: Hypothesis: Reasoning: Answer: entailment neutral contradiction holds fails stays "
    "open claim Given Claimed means maybe yes no then so"
)


def documents(seed: int, count: int) -> Iterator[str]:
    """Yield `count` documents, the same ones for the same seed."""
    rng = random.Random(seed)
    makers, weights = zip(*_MAKERS, strict=True)
    withheld = _sentences_of(generate()["test"])
    while count > 0:
        document = rng.choices(makers, weights)[0](rng)
        if withheld.isdisjoint(sentences(document)):
            count -= 1
            yield document


def sentences(text: str) -> set[str]:
    """Return the sentences of `text` in lower case, without punctuation at either end."""
    return {part.strip().lower() for part in re.split(r"[.:?]", text)} - {""}


def _sentences_of(problems: list[Problem]) -> set[str]:
    return {
        sentence
        for problem in problems
        for text in (problem.premise, problem.hypothesis)
        for sentence in sentences(text)
    }


def _word(rng: random.Random) -> str:
    pool = rng.randrange(6)
    if pool == 0:
        return rng.choice(ALL.names)
    if pool == 1:
        return rng.choice(_VALUES)
    if pool == 2:
        return rng.choice(_TASK_WORDS.split())
    return rng.choice(_NOUNS)


def _repetition(rng: random.Random) -> str:
    line = " ".join(_word(rng) for _ in range(rng.randint(4, 9)))
    return " ".join([line] * rng.randint(2, 3)) + "."


def _clause(rng: random.Random) -> list[str]:
    """Return a sentence as a list of words; those in `_SORTS` can be replaced."""
    name, other = rng.sample(ALL.names, 2)
    thing, place = rng.choice(ALL.things), rng.choice(ALL.places)
    kind = rng.choice(tuple(ALL.kinds))
    verb = rng.choice(tuple(VERBS))
    return rng.choice(
        (
            ["the", thing, "of", name, "is", rng.choice(_VALUES)],
            ["it", "is", rng.choice(_VALUES)],
            ["the", thing, "of", name, "is", "not", rng.choice(_VALUES)],
            [name, "drew", "a", rng.choice((kind, *ALL.kinds[kind]))],
            ["the", f"{thing}s", "of", name, "are", rng.choice(NUMBERS)],
            [name, "is", "in", "the", place],
            [name, rng.choice(DONE + NOT_DONE + OPEN), verb, "the", thing],
            [name, VERBS[verb], "the", thing],
            [name, "did not", verb, "the", thing],
            [name, "is", rng.choice(tuple(ORDERS)), "than", other],
        )
    )


def _difference(rng: random.Random) -> str:
    """Two clauses that differ in some words, and a comparison word by word."""
    heads = rng.choice((("One is", "Two is"), ("They wrote", "We read"), ("First", "Later")))
    if rng.random() < 0.15:
        return _kind_difference(rng, *heads)
    first = _clause(rng)
    slots = [i for i, word in enumerate(first) if word in _SORTS]
    second = _vary(rng, first, slots)
    stops_early = rng.random() < 0.5
    steps = []
    for one, two in ((first[i], second[i]) for i in slots):
        steps.append(compare(one, two))
        if one != two and one in _VALUES:
            steps.append(compare(quality_of(one), quality_of(two)))
        if one != two and stops_early:
            break
    return f"{heads[0]} {' '.join(first)}. {heads[1]} {' '.join(second)}: {', '.join(steps)}."


def _vary(rng: random.Random, clause: list[str], slots: list[int]) -> list[str]:
    """Replace none, one or two words of `clause` by others of their sort, or swap its names."""
    varied = list(clause)
    if "than" in clause and rng.random() < 0.3:
        varied[slots[0]], varied[slots[-1]] = clause[slots[-1]], clause[slots[0]]
    for slot in rng.sample(slots, min(len(slots), rng.choice((0, 1, 1, 1, 2)))):
        is_value = clause[slot] in _VALUES
        sort = _VALUES if is_value and rng.random() < 0.6 else _SORTS[clause[slot]]
        varied[slot] = rng.choice(sort)
    return varied


def _kind_difference(rng: random.Random, head: str, other_head: str) -> str:
    name = rng.choice(ALL.names)
    kind, other = rng.sample(tuple(ALL.kinds), 2)
    member, told = rng.choice(ALL.kinds[kind]), rng.choice((kind, other))
    steps = f"a {member} is a {kind}, {compare(kind, told)}"
    return f"{head} {name} drew a {member}. {other_head} {name} drew a {told}: {steps}."


def _agreement(rng: random.Random) -> str:
    """Pairs of words of one sort, and whether the two are the same word."""
    pairs = []
    for _ in range(rng.randint(2, 6)):
        first = rng.choice(_COMPARABLE)
        second = first if rng.random() < 0.5 else rng.choice(_SORTS[first])
        pairs.append(compare(first, second))
    return f"Pairs: {', '.join(pairs)}."


def _story(rng: random.Random) -> str:
    """Facts about two or three people, then questions about them in another order."""
    names = rng.sample(ALL.names, rng.randint(2, 3))
    facts, questions = [], []
    for name in names:
        thing, place = rng.choice(ALL.things), rng.choice(ALL.places)
        quality = rng.choice(tuple(QUALITIES))
        value = rng.choice(QUALITIES[quality])
        number, verb = rng.choice(NUMBERS[1:]), rng.choice(tuple(VERBS))
        fact, question = rng.choice(
            (
                (
                    f"{name} bought a {value} {thing}.",
                    f"What is the {thing} of {name} like? The {thing} of {name} is {value}.",
                ),
                (
                    f"A {thing} that is {value} was given to {name}.",
                    f"Who got the {value} {thing}? {name}.",
                ),
                (
                    f"{name} found {number} {thing}s.",
                    f"How many {thing}s has {name} now? {name} has {number} {thing}s.",
                ),
                (
                    f"{name} went into the {place} and stayed.",
                    f"Where is {name}? {name} is in the {place}.",
                ),
                (
                    f"The {thing} was a mess until {name} {VERBS[verb]} it.",
                    f"Who {VERBS[verb]} the {thing}? {name}. {name} {VERBS[verb]} the {thing}.",
                ),
                (
                    f"Yesterday {name} did not {verb} the {thing}.",
                    f"What did {name} not {verb}? The {thing}.",
                ),
            )
        )
        facts.append(fact)
        questions.append(question)
    rng.shuffle(questions)
    return " ".join(facts + questions)


def _fact(rng: random.Random) -> str:
    return " ".join(rng.choice(_FACTS)(rng) for _ in range(rng.randint(2, 4)))


def _kind_fact(rng: random.Random) -> str:
    kind, other = rng.sample(tuple(ALL.kinds), 2)
    member, sibling = rng.sample(ALL.kinds[kind], 2)
    name = rng.choice(ALL.names)
    return rng.choice(
        (
            f"A {member} is a {kind}.",
            f"A {member} is a {kind} and no {other}.",
            f"A {kind} may be a {member} or a {sibling}.",
            f"Every {member} is a {kind}, and so is every {sibling}.",
            f"Words for a {kind}: {', '.join(rng.sample(ALL.kinds[kind], 4))}.",
            f"{name} drew a {member}: a {member} is a {kind}.",
            f"{name} saw a {sibling} and a {member}: a {member} is a {kind}.",
        )
    )


def _quality_fact(rng: random.Random) -> str:
    quality, unrelated = rng.sample(tuple(QUALITIES), 2)
    value, other = rng.sample(QUALITIES[quality], 2)
    return rng.choice(
        (
            f"A thing that is {value} is not {other}.",
            f"{value.capitalize()} is a {quality}.",
            f"A {unrelated} is not a {quality}.",
            f"Not {value} is the opposite of {value}.",
            f"A {quality}: {value}. A {unrelated}: {rng.choice(QUALITIES[unrelated])}.",
        )
    )


def _number_fact(rng: random.Random) -> str:
    low, high = sorted(rng.sample(range(len(NUMBERS)), 2))
    small, big = NUMBERS[low], NUMBERS[high]
    return rng.choice(
        (
            f"The number {big} is more than {small}.",
            f"The number {small} is less than {big}.",
            f"Here {big} is more than {small}, and {small} is less than {big}.",
            f"Counting: {', '.join(NUMBERS[low : high + 1])}.",
        )
    )


def _order_fact(rng: random.Random) -> str:
    first, second = rng.sample(ALL.names, 2)
    more = rng.choice(tuple(ORDERS))
    return rng.choice(
        (
            f"If {first} is {more} than {second}, then {second} is {ORDERS[more]} than {first}.",
            f"The opposite of {more} is {ORDERS[more]}.",
            f"{first} is {more} than {second}, so {second} is {ORDERS[more]} than {first}.",
        )
    )


def _action_fact(rng: random.Random) -> str:
    verb = rng.choice(tuple(VERBS))
    done, refused, hoped = rng.choice(DONE), rng.choice(NOT_DONE), rng.choice(OPEN)
    return rng.choice(
        (
            f"Whoever {done} {verb} a thing {VERBS[verb]} it.",
            f"Whoever {done} do it did it.",
            f"Whoever {refused} do it did not do it.",
            f"Whoever {refused} {verb} a thing did not {verb} it.",
            f"Whoever {hoped} do it may do it or not.",
            f"Today they {VERBS[verb]} what they had to {verb}.",
        )
    )


def _restatement(rng: random.Random) -> str:
    """One clause in a frame, and again without it."""
    clause = " ".join(_clause(rng))
    frame = rng.choice(
        (
            "Everyone says that {}. Indeed, {}.",
            "{}, we hear. Then {}.",
            "It is known that {}. To repeat: {}.",
            "They wrote: {}. We read: {}.",
        )
    )
    return frame.format(clause, clause)


_VALUES = tuple(value for values in QUALITIES.values() for value in values)
_NOUNS = ALL.nouns
_SORTS: dict[str, tuple[str, ...]] = {
    word: group
    for group in (
        ALL.names,
        ALL.things,
        ALL.places,
        tuple(ALL.kinds),
        *ALL.kinds.values(),
        NUMBERS,
        tuple(f"{thing}s" for thing in ALL.things),
        *QUALITIES.values(),
        tuple(QUALITIES),
        tuple(ORDERS),
        ("yes", "no"),
    )
    for word in group
}
_COMPARABLE = tuple(_SORTS)
_FACTS = (_kind_fact, _kind_fact, _quality_fact, _number_fact, _number_fact, _order_fact)
_MAKERS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (_repetition, 0.1),
    (_restatement, 0.08),
    (_difference, 0.35),
    (_agreement, 0.06),
    (_story, 0.15),
    (_action_fact, 0.02),
    (_fact, 0.24),
)
