"""Packs a run's samples for the page: shared tables of tokens and prompts, and short strings of
numbers.

A list of whole numbers is written in base 32, least digit first, over 64 letters: the upper half of
the alphabet says that more digits follow. Tokens are numbers in the table of (id, piece); a
log-probability l is round(-100 l) + 1, and 0 where it is not known.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.report.read import compact, listed, mapped, number, parsed

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
STATUSES = ("scored", "wrong", "unparsed", "timeout", "error")
FINISHES = ("stop", "length", "error")
FEWEST_STEPS = 16  # of a stage, rather than all groups of fewer steps
BUDGET = 7_000_000  # bytes of packed samples; the page around them stays below 1 MB


def write_number(value: int) -> str:
    """
    >>> write_number(0), write_number(31), write_number(32)
    ('A', 'f', 'gB')
    """
    text = ""
    while value >= 32:
        text += DIGITS[32 + value % 32]
        value //= 32
    return text + DIGITS[value]


class _Words(dict[int, str]):
    def __missing__(self, value: int) -> str:
        self[value] = write_number(value)
        return self[value]


class Table:
    """Numbers for things, in order of first appearance."""

    def __init__(self) -> None:
        self.rows: dict[Any, int] = {}

    def __call__(self, row: Any) -> int:
        return self.rows.setdefault(row, len(self.rows))

    def cut(self, length: int) -> None:
        """Forgets all rows but the first `length`."""
        self.rows = dict(list(self.rows.items())[:length])


@dataclass(frozen=True)
class Step:
    step: int
    groups: str  # packed JSON
    size: int
    whole: bool  # no group was left out


@dataclass
class Shelf:
    """One stage's sample files, and what of them is on the page."""

    stage: str
    files: list[tuple[int, Path]]  # (step, path), rising
    steps: dict[int, Step] = field(default_factory=dict)
    every: int = 1  # every k-th step is on the page, and the first and last

    def wanted(self, every: int) -> list[tuple[int, Path]]:
        last = len(self.files) - 1
        return [f for i, f in enumerate(self.files) if i % every == 0 or i == last]


class Packer:
    """All of a run's samples if they fit into `budget` bytes, else each stage's first, last and
    every k-th step.

    k is the smallest power of two that fits. Where no more than FEWEST_STEPS steps are left and
    they still do not fit, each keeps its first groups, at least one.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self.words = _Words()
        self.tokens, self.prompts, self.modes, self.parts = Table(), Table(), Table(), Table()
        self.broken = 0  # groups that cannot be read
        self.used = 0

    def pack(self, directory: Path, order: Sequence[str] = ()) -> list[Shelf]:
        """Reads `directory`/STAGE/STEP.jsonl, stages in the order given."""
        shelves = (
            [Shelf(d.name, _files(d)) for d in sorted(directory.iterdir(), key=_place_of(order))]
            if directory.is_dir()
            else []
        )
        shelves = [s for s in shelves if s.files]
        longest = max((len(s.files) for s in shelves), default=1)
        every = 1 << (-(-longest // FEWEST_STEPS) - 1).bit_length()
        if shelves and self._level(shelves, every, cut=True):
            while every > 1 and self._level(shelves, every // 2, cut=False):
                every //= 2
        return shelves

    def _level(self, shelves: Sequence[Shelf], every: int, cut: bool) -> bool:
        """Adds the steps that `every` asks for. Where they do not fit: the first groups of each if
        `cut`, else none.
        """
        missing = [(s, f) for s in shelves for f in s.wanted(every) if f[0] not in s.steps]
        share = (self.budget - self.used) // max(1, len(missing)) if cut else self.budget
        marks = [len(t.rows) for t in (self.tokens, self.prompts)]
        before = self.used
        added: list[tuple[Shelf, Step]] = []
        for shelf, (number_of, path) in missing:
            step = self._step(number_of, path, share if cut else self.budget - self.used)
            if not cut and not step.whole:
                self.used = before
                for table, mark in zip((self.tokens, self.prompts), marks, strict=True):
                    table.cut(mark)
                return False
            added.append((shelf, step))
        for shelf, step in added:
            shelf.steps[step.step] = step
        for shelf in shelves:
            shelf.every = every
        return all(step.whole for _, step in added)

    def _step(self, step: int, path: Path, allowance: int) -> Step:
        rows: list[str] = []
        begun = self.used
        for line in _lines(path):
            text = self._group(line)
            if text is None:
                self.broken += 1
            elif rows and self.used - begun + len(text) > allowance:
                return Step(step, f"[{','.join(rows)}]", self.used - begun, whole=False)
            else:
                rows.append(text)
                self.used += len(text) + 1
        return Step(step, f"[{','.join(rows)}]", self.used - begun, whole=True)

    def _group(self, line: dict[str, Any]) -> str | None:
        """`[prompt, [sample, …]]`; None where the line is broken."""
        prompt, samples = mapped(line.get("prompt")), listed(line.get("samples"))
        if not prompt or not samples:
            return None
        try:
            rows = [self._sample(mapped(s)) for s in samples]
            pieces = self._sequence(
                [None] * len(listed(line.get("prompt_tokens"))), listed(line.get("prompt_tokens"))
            )
        except (TypeError, ValueError, AttributeError, OverflowError):
            return None
        messages = [
            f"{m.get('role')}\n{m.get('content')}"
            for m in listed(prompt.get("messages"))
            if isinstance(m, dict)
        ]
        answer = prompt.get("answer")
        row = (
            str(prompt.get("id", "")),
            None if answer is None else str(answer),
            pieces,
            *messages,
        )
        if row not in self.prompts.rows:
            self.used += len(dump(row)) + 1
        return dump([self.prompts(row), rows])

    def _sample(self, sample: dict[str, Any]) -> list[Any]:
        """[tokens, logp, reward, status, finish, right, mode, advantage, version, parts, mask,
        text].

        `mask` is 0 where the policy chose all tokens, `text` 0 where the pieces say it; trailing
        zeros are left out.
        """
        ids, pieces, logp, mask = (listed(sample.get(k)) for k in ("ids", "pieces", "logp", "mask"))
        if len({len(ids), len(pieces), len(logp), len(mask)}) > 1:
            raise ValueError("lengths disagree")
        chosen = "".join("1" if m else "0" for m in mask)
        mode = sample.get("mode")
        parts = [
            [self.parts(str(k)), compact(number(v))] for k, v in mapped(sample.get("parts")).items()
        ]
        row = [
            self._sequence(ids, pieces),
            "".join([self.words[_hundredths(x)] for x in logp]),
            compact(number(sample.get("reward"))),
            _place(STATUSES, sample.get("status")),
            _place(FINISHES, sample.get("finish")),
            int(sample.get("correct") is True),
            -1 if mode is None else self.modes(str(mode)),
            compact(number(sample.get("advantage")), 4),
            compact(number(sample.get("version"))),
            parts or 0,
            chosen if "0" in chosen else 0,
            0 if ids else str(sample.get("text", "")),
        ]
        while row[-1] == 0 and len(row) > 9:
            row.pop()
        return row

    def _sequence(self, ids: Sequence[Any], pieces: Sequence[Any]) -> str:
        rows, known, words = self.tokens.rows, [], self.words
        for token in zip(ids, pieces, strict=True):
            place = rows.get(token)
            if place is None:
                if not isinstance(token[1], str) or not (token[0] is None or type(token[0]) is int):
                    raise TypeError("a token is a number and its piece")
                place = self.tokens(token)
                self.used += len(dump(token)) + 1
            known.append(words[place])
        return "".join(known)

    def text(self, shelves: Sequence[Shelf]) -> str:
        """The page's `samples` as JSON."""
        stages = [_shelf(s) for s in shelves]
        tables = {
            "tokens": self.tokens,
            "prompts": self.prompts,
            "modes": self.modes,
            "parts": self.parts,
        }
        fields = [f'"{name}":{dump(list(table.rows))}' for name, table in tables.items()]
        fields.append(f'"broken":{self.broken}')
        return "{" + ",".join([*fields, f'"stages":[{",".join(stages)}]']) + "}"


def _shelf(shelf: Shelf) -> str:
    steps = ",".join(f"[{n},{shelf.steps[n].groups}]" for n in sorted(shelf.steps))
    whole = all(step.whole for step in shelf.steps.values())
    facts = dump(
        {"name": shelf.stage, "every": shelf.every, "held": len(shelf.files), "whole": whole}
    )
    return f'{facts[:-1]},"steps":[{steps}]}}'


def dump(value: Any) -> str:
    """JSON that can stand inside <script>: ASCII only, and no `<`, `>` or `&`."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hundredths(logp: Any) -> int:
    if type(logp) is float and math.isfinite(logp):
        return 1 if logp > 0 else int(0.5 - 100 * logp) + 1
    return (
        1
        if type(logp) is int and logp == 0
        else 0
        if number(logp) is None
        else int(0.5 - 100 * min(logp, 0)) + 1
    )


def _place(known: Sequence[str], word: Any) -> int:
    return known.index(word) if word in known else -1


def _files(folder: Path) -> list[tuple[int, Path]]:
    found = folder.glob("*.jsonl") if folder.is_dir() else iter(())
    return sorted((int(p.stem), p) for p in found if p.stem.isdecimal())


def _place_of(order: Sequence[str]) -> Callable[[Path], tuple[int, bool, str]]:
    """Sorts folders as their stages ran, a stage's probes and test problems after its own samples."""

    def place(folder: Path) -> tuple[int, bool, str]:
        name = (
            folder.name
            if folder.name in order
            else folder.name.removesuffix("-test").removesuffix("-probe")
        )
        return (
            order.index(name) if name in order else len(order),
            folder.name != name,
            folder.name,
        )

    return place


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from _objects(file)


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    return (parsed(line) for line in lines if line.strip())
