"""What knights and knaves say of one another: statements about one or two people, and which
assignments they leave.
"""

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

Atom = tuple[int, bool]  # (person, whether said to be a knight)


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
    """Every assignment in which exactly the knights' statements are true, by trying all; person i
    makes statement i.

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
    """All that a person may state: about one other, or about two different people."""
    atoms = [(who, knight) for who in range(people) for knight in (True, False)]
    single = [Statement(atom) for atom in atoms if atom[0] != person]
    pairs = [(a, b) for a in atoms for b in atoms if a[0] != b[0]]
    return single + [
        Statement(a, joint, b) for joint in MEANING for a, b in pairs if joint == ">" or a[0] < b[0]
    ]


def written(statements: Sequence[Statement]) -> str:
    """The statements as `A:-B;B:A&-B`."""

    def atom(said: Atom) -> str:
        return ("" if said[1] else "-") + LETTERS[said[0]]

    each = (atom(s.first) + (s.joint + atom(s.second) if s.joint else "") for s in statements)
    return ";".join(f"{letter}:{text}" for letter, text in zip(LETTERS, each, strict=False))


def read(text: str) -> list[Statement]:
    """What `written` wrote.

    >>> written(read("A:-B;B:A&-B"))
    'A:-B;B:A&-B'
    """

    def atom(said: str) -> Atom:
        return LETTERS.index(said[-1]), not said.startswith("-")

    found = []
    for part in text.split(";"):
        first, joint, second = re.fullmatch(r"\w:(-?\w)(?:([&|>=])(-?\w))?", part).groups()  # type: ignore[union-attr]
        found.append(
            Statement(atom(first), joint, atom(second)) if joint else Statement(atom(first))
        )
    return found
