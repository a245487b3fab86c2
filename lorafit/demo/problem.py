"""A problem of natural-language inference: what is given, what is claimed, and how they compare."""

from dataclasses import dataclass

LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Problem:
    """One row of the data set."""

    premise: str
    hypothesis: str
    reasoning: str
    label: str


@dataclass(frozen=True)
class Case:
    """A premise, the same in the common form, and the steps of its comparison with the claim."""

    premise: str
    given: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """A hypothesis, the same in the common form (`claim`), and one case for each label."""

    hypothesis: str
    claim: str
    entailment: Case
    neutral: Case
    contradiction: Case

    def problems(self) -> list[Problem]:
        """Return the three problems of this hypothesis."""
        ends = {"entailment": "holds", "neutral": "stays open", "contradiction": "fails"}
        problems = []
        for label in LABELS:
            case: Case = getattr(self, label)
            steps = ", ".join(case.steps)
            reasoning = (
                f"Given {case.given}. Claimed {self.claim}: {steps}, so the claim {ends[label]}."
            )
            problems.append(Problem(case.premise, self.hypothesis, reasoning, label))
        return problems


def compare(given: str, claimed: str) -> str:
    """Return a step of reasoning: whether two words agree."""
    return f"{given} and {claimed} {'agree' if given == claimed else 'differ'}"


def compare_until_different(*pairs: tuple[str, str]) -> tuple[str, ...]:
    """Return steps that compare pairs of words in turn, up to the first that differs."""
    steps = []
    for given, claimed in pairs:
        steps.append(compare(given, claimed))
        if given != claimed:
            break
    return tuple(steps)
