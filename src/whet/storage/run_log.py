"""The log of a run: metrics.jsonl, samples/, summary.json, and the display of its progress."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from whet.chat import Chat
from whet.storage.atomic import sync, write_text
from whet.storage.checkpoint import State
from whet.types import Group, Task, Update


class Display(Protocol):
    """The view of a run for a person; the command line draws it, tests record it."""

    def begin(self, stage: str, kind: str, total: int) -> None: ...
    def step(self, done: int, values: Mapping[str, float]) -> None: ...
    def warn(self, text: str) -> None: ...
    def end(self) -> None: ...


class Silent:
    """A display that shows nothing."""

    def begin(self, stage: str, kind: str, total: int) -> None: ...
    def step(self, done: int, values: Mapping[str, float]) -> None: ...
    def warn(self, text: str) -> None: ...
    def end(self) -> None: ...


class RunLog:
    """Writes one run's directory. Lines are appended whole; summary.json is replaced by one rename.

    `sync` puts on disk whatever a checkpoint or the summary relies on, before either is written.
    """

    def __init__(self, directory: Path, display: Display | None = None) -> None:
        self.directory = directory
        self.display: Display = display or Silent()
        self.warnings: list[dict[str, Any]] = []
        self.unsynced: set[Path] = set()  # files and directories that a power cut could lose
        directory.mkdir(parents=True, exist_ok=True)

    def update(self, update: Update, kind: str) -> None:
        """Appends a step's figures to metrics.jsonl."""
        line = {
            "stage": update.stage,
            "kind": kind,
            "step": update.step,
            "values": dict(update.values),
            "seconds": {k: round(v, 4) for k, v in update.seconds.items()},
        }
        path = self.directory / "metrics.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.wrote(path)
        self.display.step(update.step, update.values)

    def warn(self, stage: str, step: int, text: str) -> None:
        """Warns of something, once a stage."""
        if any(w["stage"] == stage and w["text"] == text for w in self.warnings):
            return
        self.warnings.append({"stage": stage, "step": step, "text": text})
        self.display.warn(f"{stage}, step {step}: {text}")

    def samples(
        self, stage: str, step: int, groups: Sequence[Group], chat: Chat, task: Task,
        advantages: Sequence[Sequence[float | None]] | None = None,
    ) -> None:  # fmt: skip
        """Every sample of a step, one line a group: samples/STAGE/STEP.jsonl."""
        folder = self.directory / "samples" / stage
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{step:06d}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for i, group in enumerate(groups):
                row = advantages[i] if advantages is not None else [None] * len(group.samples)
                file.write(json.dumps(_group_line(stage, step, group, chat, task, row)) + "\n")
        self.wrote(path)

    def rewind(self, stage: str, step: int) -> None:
        """Removes what was logged of a stage after a step, and half a line that a kill has left."""
        lines = self._lines()
        kept = [
            text
            for text in lines
            if (line := whole(text)) and (line["stage"] != stage or line["step"] <= step)
        ]
        if kept != lines:
            write_text(self.directory / "metrics.jsonl", "".join(kept))
        for name, last in ((stage, step), (f"{stage}-probe", step - 1), (f"{stage}-test", -1)):
            for file in (self.directory / "samples" / name).glob("*.jsonl"):
                if file.stem.isdigit() and int(file.stem) > last:
                    file.unlink()

    def logged(self, stage: str) -> int:
        """The number of a stage's steps that metrics.jsonl has without a gap."""
        lines = [line for text in self._lines() if (line := whole(text))]
        steps = [line["step"] for line in lines if line["stage"] == stage]
        return next((i for i, step in enumerate(steps) if step != i + 1), len(steps))

    def _lines(self) -> list[str]:
        path = self.directory / "metrics.jsonl"
        if not path.is_file():
            return []
        return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)

    def state(self) -> State:
        return State(data=self.warnings)

    def restore(self, state: State) -> None:
        """The warnings of the checkpoint, and those of the start of this process."""
        since = [w for w in self.warnings if w["stage"] == "start" and w not in state.data]
        self.warnings[:] = [*state.data, *since]

    def lost(self, stage: str, step: int, texts: Sequence[str]) -> None:
        """Keeps the texts of a step whose loss or gradient was not finite, and warns.

        They are in STAGE/lost/STEP.json.
        """
        folder = self.directory / stage / "lost"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{step:06d}.json", list(texts))
        text = (
            "loss or gradient was not finite, and the step was left out; what it would have "
            "learned from is in"
        )
        self.warn(stage, step, f"{text} {stage}/lost")

    def wrote(self, path: Path) -> None:
        """Notes a written file, and the run's directories above it, for the next `sync`."""
        self.unsynced |= {path, *(p for p in path.parents if p.is_relative_to(self.directory))}

    def sync(self) -> None:
        """Returns once all files written so far would outlast a power cut."""
        for path in sorted(self.unsynced):
            sync(path)
        self.unsynced.clear()

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Writes summary.json: the figures, and the warnings so far."""
        self.sync()
        write_json(self.directory / "summary.json", {**figures, "warnings": self.warnings})


def whole(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl as data; None where it was not written to its end."""
    try:
        return json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None


def _group_line(
    stage: str, step: int, group: Group, chat: Chat, task: Task, advantages: Sequence[float | None]
) -> dict[str, Any]:  # fmt: skip
    problem = group.prompt.problem
    first = len(group.prompt.tokens)
    samples = []
    for sample, text, score, advantage in zip(
        group.samples, group.texts, group.scores, advantages, strict=True
    ):
        ids = sample.tokens[first:].tolist()
        samples.append(
            {
                "text": sample.text,
                "finish": sample.finish,
                "status": score.status,
                "reward": score.value,
                "correct": score.correct,
                "parts": dict(score.parts),
                **({"reason": score.reason} if score.reason else {}),
                "mode": task.mode(problem, text) if task.modes else None,
                "advantage": advantage,
                "version": sample.version,
                "ids": ids,
                "pieces": chat.pieces(ids),
                "mask": sample.mask[first:].astype(int).tolist(),
                "logp": rounded(sample.logp[first:]),
            }
        )
    prompt = {"id": problem.id, "messages": list(problem.messages), "answer": problem.answer}
    return {
        "stage": stage,
        "step": step,
        "prompt": prompt,
        "prompt_tokens": chat.pieces(list(group.prompt.tokens)),
        "samples": samples,
    }


def rounded(numbers: NDArray[np.float32]) -> list[float]:
    """Numbers as Python's round(x, 5) gives them.

    A float32 times 10^5 is exact in float64, and so is the rounding to even.
    """
    return (np.rint(numbers.astype(np.float64) * 1e5) / 1e5).tolist()


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(data, indent=1))
