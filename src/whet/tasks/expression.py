"""Integer arithmetic as text: a small parser that never evaluates, and random expressions."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_CHARACTERS = 200
MAX_DEPTH = 20
_TOKEN = re.compile(r"\s*(?:([0-9]{1,9}+)(?![0-9])|([-+*/()]))")
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-"})


class Malformed(ValueError):
    """The text is no expression."""


class Inexact(ValueError):
    """A division by zero or with a remainder."""


@dataclass(frozen=True, slots=True)
class Parsed:
    value: int
    numbers: tuple[int, ...]  # in the order written


def parse(text: str) -> Parsed:
    """The value of a text of whole numbers, + - * / and brackets, with the numbers it uses.

    There are no signs before numbers, and every division must come out exactly. Raises Malformed,
    also beyond 200 characters or 20 brackets deep, and Inexact.

    >>> parse("(7-3)*5/2")
    Parsed(value=10, numbers=(7, 3, 5, 2))
    """
    if len(text) > MAX_CHARACTERS:
        raise Malformed(f"longer than {MAX_CHARACTERS} characters")
    text = text.translate(_SIGNS).strip()
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Malformed(f"cannot read {text[at : at + 10]!r}")
        tokens.append(match.group(1) or match.group(2))
        at = match.end()
    parser = _Parser([*tokens, ""])
    value = parser.sum(0)
    if parser.token:
        raise Malformed(f"{parser.token!r} where the expression should end")
    return Parsed(value, tuple(int(t) for t in tokens if t.isdecimal()))


class _Parser:
    """sum = product {(+|-) product};  product = atom {(*|/) atom};  atom = number | "(" sum ")"."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    @property
    def token(self) -> str:
        return self.tokens[self.at]

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self, depth: int) -> int:
        value = self.product(depth)
        while self.token in ("+", "-"):
            value = combine(value, self.take(), self.product(depth))
        return value

    def product(self, depth: int) -> int:
        value = self.atom(depth)
        while self.token in ("*", "/"):
            value = combine(value, self.take(), self.atom(depth))
        return value

    def atom(self, depth: int) -> int:
        if self.token.isdecimal():
            return int(self.take())
        if self.token != "(" or depth == MAX_DEPTH:
            raise Malformed(f"{self.token or 'the end'!r} where a number should stand")
        self.take()
        value = self.sum(depth + 1)
        if self.token != ")":
            raise Malformed("a bracket is not closed")
        self.take()
        return value


def combine(a: int, operator: str, b: int) -> int:
    """Raises Inexact."""
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    if operator == "*":
        return a * b
    if b == 0 or a % b:
        raise Inexact(f"{a}/{b}")
    return a // b


@dataclass(frozen=True, slots=True)
class Tree:
    """An expression with no more brackets than it needs. `binds`: 2 a number, 1 a product, 0 a sum."""

    value: int
    text: str
    binds: int = 2

    def join(self, operator: str, other: "Tree") -> "Tree":
        """Raises Inexact.

        >>> Tree(7, "7").join("-", Tree(3, "3").join("+", Tree(1, "1"))).text
        '7-(3+1)'
        """
        binds = 0 if operator in "+-" else 1
        left = self.text if self.binds >= binds else f"({self.text})"
        loose = other.binds < binds or (operator in "-/" and other.binds == binds)
        right = f"({other.text})" if loose else other.text
        return Tree(combine(self.value, operator, other.value), left + operator + right, binds)


def operations(a: int, b: int) -> list[str]:
    """Which operators make a positive whole number of positive a and b, in this order."""
    return ["+", "*", *(["-"] if a > b else []), *(["/"] if a % b == 0 else [])]


def at_random(numbers: Sequence[int], rng: random.Random) -> Tree:
    """An expression of all the numbers whose every partial result is a positive whole number."""
    trees = [Tree(number, str(number)) for number in numbers]
    while len(trees) > 1:
        a, b = (trees.pop(rng.randrange(len(trees))) for _ in range(2))
        trees.append(a.join(rng.choice(operations(a.value, b.value)), b))
    return trees[0]


class Reach:
    """The values that expressions of some positive numbers have.

    Every partial result is a positive whole number.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self.values: list[set[int]] = [
            set() for _ in range(1 << len(numbers))
        ]  # by subset, as bits
        for subset in range(1, len(self.values)):
            if subset & (subset - 1) == 0:
                self.values[subset] = {numbers[subset.bit_length() - 1]}
            for part, rest in _halves(subset):
                for a in self.values[part]:
                    for b in self.values[rest]:
                        self.values[subset] |= {combine(a, op, b) for op in operations(a, b)}

    @property
    def everything(self) -> int:
        return len(self.values) - 1

    def write(self, value: int, rng: random.Random, subset: int | None = None) -> Tree:
        """One of the ways to make `value` of all numbers of `subset` (default: of all numbers)."""
        subset = self.everything if subset is None else subset
        if subset & (subset - 1) == 0:
            return Tree(value, str(value))
        ways = [
            (part, a, op, rest, b)
            for part, rest in _halves(subset)
            for a in self.values[part]
            for b in self.values[rest]
            for op in operations(a, b)
            if combine(a, op, b) == value
        ]
        part, a, op, rest, b = rng.choice(sorted(ways))
        return self.write(a, rng, part).join(op, self.write(b, rng, rest))


def _halves(subset: int) -> list[tuple[int, int]]:
    """Every split of a set of bits into two sets that are not empty, in both orders.

    >>> _halves(0b101)
    [(4, 1), (1, 4)]
    """
    halves = []
    part = (subset - 1) & subset
    while part:
        halves.append((part, subset ^ part))
        part = (part - 1) & subset
    return halves
