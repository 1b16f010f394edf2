"""Knights and knaves (Logic-RL, arXiv:2502.14768): everyone always says what is true, or never
does; who is what?

    You meet Ada and Ben. Ada says: "Ben is a knave." Ben says: "Ada is a knave and I am a knave."
    ->  Ada is a knight, Ben is a knave

Each person makes one statement about one or two people. Problems are made at random and kept where
exactly one assignment fits, which trying all 2^people assignments decides. `terse`, for tokenizers
made from nothing, writes the same problem as `A:-B;B:-A&-B` and its answer as `YN` (Y: a knight).
"""

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from whet.errors import RecipeError
from whet.rewards.extract import between, concluded
from whet.tasks.corpus import draw_modes, training_problems
from whet.tasks.split import Split, demand, distinct, is_test
from whet.tasks.statements import LETTERS, Atom, Statement, possible, read, solutions, written
from whet.types import Problem, Score

NAMES = (
    *("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana"),
    *("Ida", "Jon", "Kim", "Leo", "Mia", "Noah", "Ola", "Pia"),
)
WORDS = {"&": "{} and {}", "|": "{} or {}", ">": "if {}, then {}", "=": "{} if and only if {}"}
RULES = (
    "Everyone on this island is either a knight, who says only what is true, or a knave, who says only what is false. "
    'Here "or" includes both, and "if … then" is false only where the first holds and the second does not.'
)
FORM = 'Who is what? Answer in one line, saying "NAME is a knight" or "NAME is a knave" of everyone, with commas between.'
ANSWER = re.compile(r"(\w+)\s*(?:\bis\s+an?\b|\bis\b|:|=|-)\s*(knight|knave)", re.IGNORECASE)
BETWEEN = re.compile(
    r"\s*(?:[,;.\n]\s*(?:and\s+)?|\band\s+)?(?:\(?\d+[).]\s*)?(?:[-*]\s+)?", re.IGNORECASE
)
TERSE = re.compile(r"(?:<think>)?[^<]*</think>\s*([YN]+)")


@dataclass(eq=False)
class Knights:
    """`people` from 2 to 8. The reply names everyone within `<answer>…</answer>`, or as all that
    follows the thinking.

    Train and test are split by a hash of the statements, whatever the names. Raises RecipeError for
    options that make no problem.
    """

    people: int = 3
    terse: bool = False

    name = "knights"
    modes: tuple[str, ...] = field(default=("direct", "cases"), init=False)

    def __post_init__(self) -> None:
        if not 2 <= self.people <= len(LETTERS):
            raise RecipeError(
                f"task knights: people = {self.people}; it must be between 2 and {len(LETTERS)}"
            )

    @cached_property
    def _pool(self) -> dict[Split, list[str]] | None:
        """Every problem of two people; None where there are more of them."""
        if self.people > 2:
            return None
        pool: dict[Split, list[str]] = {"train": [], "test": []}
        for pair in itertools.product(possible(0, 2), possible(1, 2)):
            if len(solutions(pair)) == 1:
                text = written(pair)
                pool["test" if is_test(f"knights {text}") else "train"].append(text)
        return pool

    def size(self, split: Split) -> int | None:
        return None if self._pool is None else len(self._pool[split])

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        rng = random.Random(f"knights {self.people} {split} {seed}")
        what, cure = (
            f"task knights: {split} problems",
            f"ask for fewer, or more than people = {self.people}",
        )
        everything = [possible(person, self.people) for person in range(self.people)]

        def draw() -> str | None:
            statements = [rng.choice(each) for each in everything]
            text = written(statements)
            fits = (
                is_test(f"knights {text}") == (split == "test") and len(solutions(statements)) == 1
            )
            return text if fits else None

        if self._pool is None:
            found = distinct(draw, n, what, cure)
        else:
            demand(n, len(self._pool[split]), what, cure)
            found = rng.sample(self._pool[split], n)
        return [self._problem(text) for text in found]

    def _problem(self, text: str) -> Problem:
        statements = read(text)
        (knights,) = solutions(statements)
        who = random.Random(f"names {text}").sample(
            NAMES, self.people
        )  # the same problem has the same names everywhere
        content = text if self.terse else posed(statements, who)
        return Problem(
            id=f"knights:{text}",
            messages=({"role": "user", "content": content},),
            answer=terse(knights) if self.terse else told(knights, who),
            task=self.name,
            meta={"statements": text, "names": who},
        )

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        """1 where everyone is called what they are; unparsed where someone is called nothing, or
        two things.
        """
        return [self._verdict(problem, text) for problem, text in zip(problems, texts, strict=True)]

    def _verdict(self, problem: Problem, text: str) -> Score:
        said = self._said(problem, text)
        if said is None:
            return Score(0.0, "unparsed")
        statements = read(problem.meta["statements"])
        right = all(s.true(said) == knight for s, knight in zip(statements, said, strict=True))
        return Score(float(right), "scored" if right else "wrong")

    def _said(self, problem: Problem, text: str) -> tuple[bool, ...] | None:
        if not self.terse:
            return claimed(text, problem.meta["names"])
        match = TERSE.fullmatch(text)
        if match is None or len(match.group(1)) != self.people:
            return None
        return tuple(letter == "Y" for letter in match.group(1))

    def mode(self, problem: Problem, text: str) -> str:
        """By form: direct where nothing was thought, cases where something was, other where nothing
        is answered.
        """
        if self._said(problem, text) is None:
            return "other"
        return (
            "cases" if text.partition("</think>")[0].removeprefix("<think>").strip() else "direct"
        )

    def alphabet(self) -> str:
        if self.terse:
            return f"{LETTERS[: self.people]}YN:;-&|>="
        spoken = (
            RULES
            + FORM
            + "".join(NAMES)
            + "".join(WORDS.values())
            + "a knave. Suppose says is false, so no; fits: IiTYyou meet</>\n"
        )
        return "".join(dict.fromkeys(spoken.replace("{}", "") + '":;'))

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        """Right answers: given at once (direct), or found by trying assignments in a random order
        (cases), each but the last refuted by the first person whose statement does not go with it.
        """
        rng = random.Random(f"knights corpus {seed}")
        modes = draw_modes(self, mix, n, rng)
        pairs: list[tuple[Problem, str]] = []
        for problem, mode in zip(training_problems(self, n, seed), modes, strict=True):
            tries = self._tried(problem, rng) if mode == "cases" else ""
            answer = problem.answer if self.terse else f"<answer>{problem.answer}</answer>"
            pairs.append((problem, f"<think>{tries}</think>{answer}"))
        return pairs

    def _tried(self, problem: Problem, rng: random.Random) -> str:
        statements, who = read(problem.meta["statements"]), problem.meta["names"]
        assignments = list(itertools.product((True, False), repeat=self.people))
        rng.shuffle(assignments)
        steps: list[str] = []
        for knights in assignments:
            liar = next(
                (i for i, s in enumerate(statements) if s.true(knights) != knights[i]), None
            )
            if self.terse:
                steps.append(terse(knights) + ("" if liar is None else f":{LETTERS[liar]}"))
            elif liar is None:
                steps.append(f"Suppose {told(knights, who)}: that fits.")
            else:
                value = "false" if knights[liar] else "true"
                steps.append(
                    f"Suppose {told(knights, who)}: what {who[liar]} says is {value}, so no."
                )
            if liar is None:
                break
        return (";" if self.terse else "\n").join(steps)


def posed(statements: Sequence[Statement], who: Sequence[str]) -> str:
    """The problem in words."""

    def atom(speaker: int, said: Atom) -> str:
        subject = "I am" if said[0] == speaker else f"{who[said[0]]} is"
        return f"{subject} a {'knight' if said[1] else 'knave'}"

    lines = []
    for i, s in enumerate(statements):
        words = (
            WORDS[s.joint].format(atom(i, s.first), atom(i, s.second))
            if s.joint
            else atom(i, s.first)
        )
        lines.append(f'{who[i]} says: "{words[0].upper()}{words[1:]}."')
    people = f"{', '.join(who[:-1])} and {who[-1]}"
    return f"{RULES}\n\nYou meet {people}. {' '.join(lines)}\n\n{FORM}"


def told(knights: Sequence[bool], who: Sequence[str]) -> str:
    return ", ".join(
        f"{name} is a {'knight' if k else 'knave'}" for name, k in zip(who, knights, strict=True)
    )


def terse(knights: Sequence[bool]) -> str:
    return "".join("Y" if knight else "N" for knight in knights)


def claimed(text: str, who: Sequence[str]) -> tuple[bool, ...] | None:
    """Who is said to be a knight; None unless a reply's answer names everyone, each as one thing,
    and says nothing else.

    >>> claimed("<think>…</think><answer>Ada is a knight, and Ben is a knave.</answer>", ["Ada", "Ben"])
    (True, False)
    >>> claimed("Ada is a knight or a knave, Ben is a knave", ["Ada", "Ben"])
    """
    conclusion = concluded(text)
    if conclusion is None:
        return None
    inside = between(conclusion, "<answer>", "</answer>")
    said = (conclusion if inside is None else inside).strip().rstrip(".")
    found: dict[str, bool] = {}
    place = 0
    while place < len(said):
        gap = BETWEEN.match(said, place)
        match = ANSWER.match(said, gap.end() if gap else place)
        if (
            match is None
            or match.group(1).casefold() in found
            or (place and gap and gap.end() == place)
        ):
            return None
        found[match.group(1).casefold()] = match.group(2).casefold() == "knight"
        place = match.end()
    if set(found) != {name.casefold() for name in who}:
        return None
    return tuple(found[name.casefold()] for name in who)
