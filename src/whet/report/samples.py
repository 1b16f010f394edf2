"""Chooses which of a run's samples the page holds, and packs them: JSON, gzip, base64.

The page's script unpacks them with the browser's `DecompressionStream`. A token is a place in one
table of (id, piece).
"""

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.report.read import compact, listed, mapped, number, parsed

FEWEST_STEPS = 16  # of a stage, rather than all groups of fewer steps
BUDGET = (
    30_000_000  # bytes of JSON before compression; gzip and base64 make a sixth of them or less
)


@dataclass(frozen=True)
class Step:
    """One step's groups, or the first of them."""

    groups: list[str]  # JSON of each
    whole: bool  # no group was left out to keep the budget
    broken: int  # groups that cannot be read

    @property
    def size(self) -> int:
        return sum(map(len, self.groups)) + len(self.groups)


@dataclass
class StageSamples:
    """One stage's sample files, and which steps of them are on the page."""

    stage: str
    files: list[tuple[int, Path]]  # (step, path), rising
    steps: dict[int, Step] = field(default_factory=dict)
    every: int = 1  # every k-th step is on the page, and the first and last

    def missing(self, every: int) -> list[tuple[int, Path]]:
        """The files of the steps that `every` asks for and that are not here yet."""
        last = len(self.files) - 1
        return [
            (step, path)
            for i, (step, path) in enumerate(self.files)
            if (i % every == 0 or i == last) and step not in self.steps
        ]

    @property
    def whole(self) -> bool:
        return all(step.whole for step in self.steps.values())


class Samples:
    """A run's samples from `directory`/STAGE/STEP.jsonl: all that fit into `budget` bytes of JSON.

    Where not all fit, each stage keeps its first, its last and every k-th step; k is the smallest
    power of two that fits. Where FEWEST_STEPS steps of a stage do not fit either, each step keeps
    its first groups, at least one. `order` names the stages as they ran.
    """

    def __init__(self, directory: Path, order: Sequence[str] = (), budget: int = BUDGET) -> None:
        self.tokens: dict[tuple[int | None, str], int] = {}  # (id, piece): its place in the table
        folders = sorted(directory.iterdir(), key=_place_of(order)) if directory.is_dir() else []
        stages = [StageSamples(folder.name, _files(folder)) for folder in folders]
        self.stages = [stage for stage in stages if stage.files]
        longest = max((len(stage.files) for stage in self.stages), default=1)
        every = 1 << (-(-longest // FEWEST_STEPS) - 1).bit_length()
        self._add_first_groups(every, budget)
        while every > 1 and self.whole and self._add_whole(every // 2, budget):
            every //= 2
        for stage in self.stages:
            stage.every = every

    @property
    def whole(self) -> bool:
        return all(stage.whole for stage in self.stages)

    @property
    def broken(self) -> int:
        """Groups of the page's steps that cannot be read."""
        return sum(step.broken for stage in self.stages for step in stage.steps.values())

    def encode(self) -> str:
        """The page's samples: JSON, compressed by gzip, in base64."""
        stages = ",".join(map(_stage, self.stages))
        text = f'{{"tokens":{_json(list(self.tokens))},"stages":[{stages}]}}'
        return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")

    def _add_first_groups(self, every: int, budget: int) -> None:
        """Adds every k-th step; each has an equal share of the budget."""
        files = [(stage, *file) for stage in self.stages for file in stage.missing(every)]
        for stage, step, path in files:
            stage.steps[step] = self._step(path, budget // len(files))

    def _add_whole(self, every: int, budget: int) -> bool:
        """Adds every k-th step if all of them fit; returns whether they do."""
        left = budget - sum(step.size for stage in self.stages for step in stage.steps.values())
        added: list[tuple[StageSamples, int, Step]] = []
        for stage in self.stages:
            for step, path in stage.missing(every):
                groups = self._step(path, left)
                left -= groups.size
                if left < 0 or not groups.whole:
                    return False
                added.append((stage, step, groups))
        for stage, step, groups in added:
            stage.steps[step] = groups
        return True

    def _step(self, path: Path, allowance: int) -> Step:
        """The groups of a file, as many as `allowance` bytes hold, and at least one."""
        groups: list[str] = []
        broken = size = 0
        for line in _lines(path):
            text = self._group(line)
            if text is None:
                broken += 1
                continue
            size += len(text) + 1
            if groups and size > allowance:
                return Step(groups, False, broken)
            groups.append(text)
        return Step(groups, True, broken)

    def _group(self, line: dict[str, Any]) -> str | None:
        """A line of a sample file as the page's JSON; None where the line is broken."""
        prompt, samples = mapped(line.get("prompt")), listed(line.get("samples"))
        if not prompt or not samples:
            return None
        answer, pieces = prompt.get("answer"), listed(line.get("prompt_tokens"))
        messages = [m for m in listed(prompt.get("messages")) if isinstance(m, dict)]
        try:
            shown = {
                "id": str(prompt.get("id", "")),
                "answer": None if answer is None else str(answer),
                "messages": [[str(m.get("role")), str(m.get("content"))] for m in messages],
                "tokens": self._places([None] * len(pieces), pieces),
            }
            return _json({"prompt": shown, "samples": [self._sample(mapped(s)) for s in samples]})
        except (TypeError, ValueError):
            return None

    def _sample(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The fields of a sample that the page shows; log-probabilities in hundredths of a nat.

        `mask` is there if the policy did not choose all tokens, `text` if there are no tokens.
        Raises ValueError or TypeError where the tokens are broken.
        """
        ids, pieces, logp, mask = (listed(sample.get(k)) for k in ("ids", "pieces", "logp", "mask"))
        if len({len(ids), len(pieces), len(logp), len(mask)}) > 1:
            raise ValueError("lengths disagree")
        mode = sample.get("mode")
        fields = {
            "tokens": self._places(ids, pieces),
            "logp": [_hundredths(x) for x in logp],
            "reward": compact(number(sample.get("reward"))),
            "status": str(sample.get("status", "unknown")),
            "finish": str(sample.get("finish", "unknown")),
            "right": sample.get("correct") is True,
            "mode": None if mode is None else str(mode),
            "advantage": compact(number(sample.get("advantage")), 4),
            "version": compact(number(sample.get("version"))),
            "parts": [[str(k), compact(number(v))] for k, v in mapped(sample.get("parts")).items()],
        }
        if not all(mask):
            fields["mask"] = [int(bool(chosen)) for chosen in mask]
        if not ids:
            fields["text"] = str(sample.get("text", ""))
        return fields

    def _places(self, ids: Sequence[Any], pieces: Sequence[Any]) -> list[int]:
        """The places of tokens in the table; new ones are added."""
        table, places = self.tokens, []
        for token in zip(ids, pieces, strict=True):
            place = table.get(token)
            if place is None:
                if type(token[1]) is not str or not (token[0] is None or type(token[0]) is int):
                    raise TypeError("a token is a number and its piece")
                place = table[token] = len(table)
            places.append(place)
        return places


def _hundredths(logp: Any) -> int | None:
    """
    >>> _hundredths(-0.128), _hundredths(0.25), _hundredths(float("-inf")), _hundredths("x")
    (-13, 0, None, None)
    """
    value = number(logp)
    return None if value is None else round(100 * min(value, 0))


def _stage(stage: StageSamples) -> str:
    steps = ",".join(f"[{n},[{','.join(stage.steps[n].groups)}]]" for n in sorted(stage.steps))
    facts = {
        "name": stage.stage,
        "every": stage.every,
        "written": len(stage.files),
        "whole": stage.whole,
    }
    return f'{_json(facts)[:-1]},"steps":[{steps}]}}'


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _files(folder: Path) -> list[tuple[int, Path]]:
    files = folder.glob("*.jsonl") if folder.is_dir() else iter(())
    return sorted((int(p.stem), p) for p in files if p.stem.isdecimal())


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
        yield from (parsed(line) for line in file if line.strip())
