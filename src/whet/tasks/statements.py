"""Statements of knights and knaves about one another, and the assignments that satisfy them."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = "ABCDEFGH"
MEANING = {
    "&": lambda a, b: a and b,
    "|": lambda a, b: a or b,
    ">": lambda a, b: b or not a,
    "=": lambda a, b: a == b,
}

Atom = tuple[int, bool]  # (person, whether the speaker calls them a knight)


@dataclass(frozen=True, slots=True)
class Statement:
    """One atom, or two joined by & (and), | (or), > (if … then) or = (if and only if)."""

    first: Atom
    joint: str = ""
    second: Atom = (0, True)

    def true(self, knights: Sequence[bool]) -> bool:
        one = knights[self.first[0]] == self.first[1]
        return (
            MEANING[self.joint](one, knights[self.second[0]] == self.second[1])
            if self.joint
            else one
        )


def solutions(statements: Sequence[Statement]) -> list[tuple[bool, ...]]:
    """Every assignment in which the knights' statements are true and the knaves' are false.

    Person i makes statement i. Tries all 2^people assignments.

    >>> solutions([Statement((1, False)), Statement((0, False), "&", (1, False))])
    [(True, False)]
    >>> len(solutions([Statement((1, True)), Statement((0, True))]))
    2
    """
    everyone = itertools.product((True, False), repeat=len(statements))
    return [
        a
        for a in everyone
        if all(s.true(a) == knight for s, knight in zip(statements, a, strict=True))
    ]


def possible(person: int, people: int) -> list[Statement]:
    """Every statement of a person: about one other, or about two different people."""
    atoms = [(who, knight) for who in range(people) for knight in (True, False)]
    single = [Statement(atom) for atom in atoms if atom[0] != person]
    pairs = [(a, b) for a in atoms for b in atoms if a[0] != b[0]]
    return single + [
        Statement(a, joint, b) for joint in MEANING for a, b in pairs if joint == ">" or a[0] < b[0]
    ]


def written(statements: Sequence[Statement]) -> str:
    """The statements as `A:-B;B:A&-B`."""

    def letter(atom: Atom) -> str:
        return ("" if atom[1] else "-") + LETTERS[atom[0]]

    each = (letter(s.first) + (s.joint + letter(s.second) if s.joint else "") for s in statements)
    return ";".join(f"{speaker}:{text}" for speaker, text in zip(LETTERS, each, strict=False))


def read(text: str) -> list[Statement]:
    """The statements that `written` wrote.

    >>> written(read("A:-B;B:A&-B"))
    'A:-B;B:A&-B'
    """

    def atom(letter: str) -> Atom:
        return LETTERS.index(letter[-1]), not letter.startswith("-")

    statements = []
    for part in text.split(";"):
        first, joint, second = re.fullmatch(r"\w:(-?\w)(?:([&|>=])(-?\w))?", part).groups()  # type: ignore[union-attr]
        statements.append(
            Statement(atom(first), joint, atom(second)) if joint else Statement(atom(first))
        )
    return statements
