"""Reads a run directory, finished or not. A missing or broken part becomes a notice."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.errors import DataError

MOST_POINTS = 2000  # of one stage's curves; beyond, every k-th update is drawn


@dataclass(frozen=True)
class Curve:
    """The updates of one stage, column by column; None where an update lacks the value."""

    stage: str
    kind: str
    steps: list[int]  # [S], rising
    values: dict[str, list[float | None]]  # [S] each
    seconds: dict[str, list[float | None]]  # [S] each, by phase
    every: int = 1  # every k-th update is here


@dataclass(frozen=True)
class Run:
    directory: Path
    summary: dict[str, Any]
    recipe: str | None
    curves: list[Curve]
    notices: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The summary's stages; entries that are no tables are left out."""
        return [s for s in listed(self.summary.get("stages")) if isinstance(s, dict)]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def mapped(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or None.

    >>> number(0.5), number(float("nan")), number("0.5"), number(True)
    (0.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return float(value) if abs(value) < 1 << 1000 else None
    return value if math.isfinite(value) else None


def compact(value: float | None, digits: int = 5) -> float | int | None:
    """The value to so many significant digits; a whole number becomes an int."""
    if value is None:
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def read(directory: Path) -> Run:
    """The run in `directory`, without its samples.

    Raises DataError where there is no run or its summary is broken.
    """
    if not directory.is_dir():
        raise DataError(
            f"{directory}: no such run directory; give one that `whet run` wrote, such as runs/NAME"
        )
    summary, metrics = directory / "summary.json", directory / "metrics.jsonl"
    if not summary.is_file() and not metrics.is_file():
        raise DataError(
            f"{directory} holds no run (neither summary.json nor metrics.jsonl); give one that "
            f"`whet run` wrote"
        )
    notices: list[str] = []
    figures = _summary(summary, notices)
    curves = read_curves(metrics, notices)
    recipe = directory / "recipe.toml"
    text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else None
    return Run(directory, figures, text, curves, notices)


def _summary(path: Path, notices: list[str]) -> dict[str, Any]:
    if not path.is_file():
        notices.append(
            "summary.json is missing: the run has not finished its first stage, so nothing is measured yet."
        )
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); run the recipe again, or mend the file"
        ) from None
    if not isinstance(summary, dict):
        raise DataError(f"{path} is not a JSON object; run the recipe again, or mend the file")
    return summary


def read_curves(path: Path, notices: list[str]) -> list[Curve]:
    """The lines of metrics.jsonl by stage, in order of appearance.

    If a step has two lines, the later one counts.
    """
    if not path.is_file():
        notices.append("metrics.jsonl is missing, so there are no curves.")
        return []
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    kinds: dict[str, str] = {}
    broken: list[int] = []
    count = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for count, text in enumerate(file, 1):
            line = parsed(text)
            stage, step = line.get("stage"), line.get("step")
            if not isinstance(stage, str) or not isinstance(step, int) or isinstance(step, bool):
                broken.append(count)
                continue
            stages.setdefault(stage, {})[step] = line
            kinds[stage] = str(line.get("kind", ""))
    if broken:
        notices.append(_left_out(broken, count))
    return [_columns(stage, kinds[stage], lines) for stage, lines in stages.items()]


def _left_out(broken: list[int], count: int) -> str:
    if broken == [count]:
        return f"metrics.jsonl: its last line ({count}) is cut off and is left out."
    return (
        f"metrics.jsonl: {len(broken)} of {count} lines cannot be read and are left out, the "
        f"first is line {broken[0]}."
    )


def parsed(text: str) -> dict[str, Any]:
    """One line of JSON; empty where it is broken or no object."""
    try:
        return mapped(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _columns(stage: str, kind: str, lines: Mapping[int, dict[str, Any]]) -> Curve:
    steps = sorted(lines)
    every = -(-len(steps) // MOST_POINTS)
    kept = [s for i, s in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
    rows = [lines[s] for s in kept]
    return Curve(
        stage,
        kind,
        kept,
        _table(r.get("values") for r in rows),
        _table(r.get("seconds") for r in rows),
        every,
    )


def _table(rows: Iterable[Any]) -> dict[str, list[float | None]]:
    records = [mapped(r) for r in rows]
    keys = {key: None for record in records for key in record}
    table = {key: [compact(number(record.get(key))) for record in records] for key in keys}
    return {key: column for key, column in table.items() if any(v is not None for v in column)}
