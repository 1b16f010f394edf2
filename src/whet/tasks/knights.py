"""Knights and knaves (Logic-RL, arXiv:2502.14768): knights say what is true, knaves what is false.

    You meet Ada and Ben. Ada says: "Ben is a knave." Ben says: "Ada is a knave and I am a knave."
    ->  Ada is a knight, Ben is a knave

Each person makes one statement about one or two people. Problems are made at random and kept where
exactly one assignment fits, which trying all 2^people assignments decides. `terse`, for tokenizers
made from nothing, writes the same problem as `A:-B;B:-A&-B` and its answer as `YN` (Y: a knight).
"""

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from functools import cached_property

from pydantic import Field

from whet.rewards.extract import between, concluded
from whet.tasks.base import Generated
from whet.tasks.split import is_test
from whet.tasks.statements import LETTERS, Atom, Statement, possible, read, solutions, written
from whet.types import Problem, Score

NAMES = (
    *("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana"),
    *("Ida", "Jon", "Kim", "Leo", "Mia", "Noah", "Ola", "Pia"),
)
WORDS = {"&": "{} and {}", "|": "{} or {}", ">": "if {}, then {}", "=": "{} if and only if {}"}
RULES = (
    "Everyone on this island is either a knight, who says only what is true, "
    "or a knave, who says only what is false. "
    'Here "or" includes both, and "if … then" is false only where the first holds '
    "and the second does not."
)
FORM = (
    'Who is what? Answer in one line, saying "NAME is a knight" or "NAME is a knave" of everyone, '
    "with commas between."
)
ANSWER = re.compile(r"(\w+)\s*(?:\bis\s+an?\b|\bis\b|:|=|-)\s*(knight|knave)", re.IGNORECASE)
BETWEEN = re.compile(
    r"\s*(?:[,;.\n]\s*(?:and\s+)?|\band\s+)?(?:\(?\d+[).]\s*)?(?:[-*]\s+)?", re.IGNORECASE
)
TERSE = re.compile(r"(?:<think>)?[^<]*</think>\s*([YN]+)")


class Knights(Generated):
    """The reply names everyone within `<answer>…</answer>`, or in all that follows the thinking.

    The split hashes the statements; the people's names make no other problem.
    """

    owner = "task knights"
    cure = "ask for fewer, or more than people = {people}"
    people: int = Field(default=3, ge=2, le=len(LETTERS), description="people in a problem")
    terse: bool = Field(
        default=False, description="A:-B;B:-A&-B and YN in place of words, for tiny models"
    )

    @property
    def modes(self) -> tuple[str, ...]:
        return ("direct", "cases")

    @property
    def variety(self) -> str:
        return f"knights {self.people}"

    @cached_property
    def _statements(self) -> list[list[Statement]]:
        """What each person may state."""
        return [possible(person, self.people) for person in range(self.people)]

    def listed(self) -> Iterator[str] | None:
        if self.people > 2:
            return None
        pairs = itertools.product(*self._statements)
        return (written(pair) for pair in pairs if len(solutions(pair)) == 1)

    def draw(self, rng: random.Random) -> str | None:
        statements = [rng.choice(each) for each in self._statements]
        return written(statements) if len(solutions(statements)) == 1 else None

    def in_test(self, text: str) -> bool:
        return is_test(f"knights {text}")

    def problem(self, text: str) -> Problem:
        statements = read(text)
        (knights,) = solutions(statements)
        # seeded by the text: a problem has the same names everywhere
        names = random.Random(f"names {text}").sample(NAMES, self.people)
        content = text if self.terse else posed(statements, names)
        return Problem(
            id=f"knights:{text}",
            messages=({"role": "user", "content": content},),
            answer=terse(knights) if self.terse else verbose(knights, names),
            task=self.name,
            meta={"statements": text, "names": names},
        )

    def verdict(self, problem: Problem, text: str) -> Score:
        """1 where everyone is called what they are.

        Unparsed where someone is called nothing, or two things.
        """
        claims = self._claims(problem, text)
        if claims is None:
            return Score(0.0, "unparsed")
        statements = read(problem.meta["statements"])
        right = all(s.true(claims) == knight for s, knight in zip(statements, claims, strict=True))
        return Score(float(right), "scored" if right else "wrong")

    def _claims(self, problem: Problem, text: str) -> tuple[bool, ...] | None:
        """Whom a reply calls a knight; None where the reply does not name everyone."""
        if not self.terse:
            return claimed(text, problem.meta["names"])
        match = TERSE.fullmatch(text)
        if match is None or len(match.group(1)) != self.people:
            return None
        return tuple(letter == "Y" for letter in match.group(1))

    def mode(self, problem: Problem, text: str) -> str:
        """By form: direct without thinking, cases with some, other without an answer."""
        if self._claims(problem, text) is None:
            return "other"
        thinking = text.partition("</think>")[0].removeprefix("<think>").strip()
        return "cases" if thinking else "direct"

    def alphabet(self) -> str:
        if self.terse:
            return f"{LETTERS[: self.people]}YN:;-&|>="
        words = (
            RULES
            + FORM
            + "".join(NAMES)
            + "".join(WORDS.values())
            + "a knave. Suppose says is false, so no; fits: IiTYyou meet</>\n"
        )
        return "".join(dict.fromkeys(words.replace("{}", "") + '":;'))

    def response(self, problem: Problem, mode: str, rng: random.Random) -> str:
        """Given at once (direct), or found by trying assignments in a random order (cases).

        The first person whose statement does not fit refutes each assignment but the last.
        """
        tries = self._tried(problem, rng) if mode == "cases" else ""
        answer = problem.answer if self.terse else f"<answer>{problem.answer}</answer>"
        return f"<think>{tries}</think>{answer}"

    def _tried(self, problem: Problem, rng: random.Random) -> str:
        statements, names = read(problem.meta["statements"]), problem.meta["names"]
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
                steps.append(f"Suppose {verbose(knights, names)}: that fits.")
            else:
                value = "false" if knights[liar] else "true"
                steps.append(
                    f"Suppose {verbose(knights, names)}: what {names[liar]} says is {value}, so no."
                )
            if liar is None:
                break
        return (";" if self.terse else "\n").join(steps)


def posed(statements: Sequence[Statement], names: Sequence[str]) -> str:
    """The problem in words."""

    def words(speaker: int, atom: Atom) -> str:
        person, knight = atom
        subject = "I am" if person == speaker else f"{names[person]} is"
        return f"{subject} a {'knight' if knight else 'knave'}"

    lines = []
    for i, statement in enumerate(statements):
        sentence = words(i, statement.first)
        if statement.joint:
            sentence = WORDS[statement.joint].format(sentence, words(i, statement.second))
        lines.append(f'{names[i]} says: "{sentence[0].upper()}{sentence[1:]}."')
    people = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{RULES}\n\nYou meet {people}. {' '.join(lines)}\n\n{FORM}"


def verbose(knights: Sequence[bool], names: Sequence[str]) -> str:
    return ", ".join(
        f"{name} is a {'knight' if k else 'knave'}" for name, k in zip(names, knights, strict=True)
    )


def terse(knights: Sequence[bool]) -> str:
    return "".join("Y" if knight else "N" for knight in knights)


def claimed(text: str, names: Sequence[str]) -> tuple[bool, ...] | None:
    """Whom a reply calls a knight.

    None unless the answer names everyone, each as one thing, and says nothing else.

    >>> claimed("<think>…</think><answer>Ada is a knight, and Ben is a knave.</answer>", ["Ada", "Ben"])
    (True, False)
    >>> claimed("Ada is a knight or a knave, Ben is a knave", ["Ada", "Ben"])
    """
    conclusion = concluded(text)
    if conclusion is None:
        return None
    inside = between(conclusion, "<answer>", "</answer>")
    answer = (conclusion if inside is None else inside).strip().rstrip(".")
    knights: dict[str, bool] = {}
    place = 0
    while place < len(answer):
        gap = BETWEEN.match(answer, place)
        match = ANSWER.match(answer, gap.end() if gap else place)
        if (
            match is None
            or match.group(1).casefold() in knights
            or (place and gap and gap.end() == place)
        ):
            return None
        knights[match.group(1).casefold()] = match.group(2).casefold() == "knight"
        place = match.end()
    if set(knights) != {name.casefold() for name in names}:
        return None
    return tuple(knights[name.casefold()] for name in names)
