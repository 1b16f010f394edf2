"""What is kept of a run while it runs: whole, checked when it is read, and enough to go on as if
nothing had happened.

A checkpoint is a directory STAGE/checkpoints/STEP with state.safetensors (weights, moments),
state.json (all that is no tensor) and manifest.json (the SHA-256 of both). It is written aside,
synced and committed by one rename.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from whet.errors import ModelError, Stopped
from whet.storage.atomic import committed

__all__ = ["Counted", "Holds", "Record", "Saves", "State", "committed"]

TENSORS, DATA, MANIFEST = "state.safetensors", "state.json", "manifest.json"
Item = TypeVar("Item")


@dataclass(frozen=True)
class State:
    """All that one part of a run must remember: tensors, and data that JSON can say."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    data: Any = None


class Holds(Protocol):
    """Whatever has to be as it was: the states of two runs are equal where their next steps are."""

    def state(self) -> State: ...
    def restore(self, state: State) -> None: ...


class Counted(Generic[Item]):
    """A stream that the seed fixes, and how far it has been read."""

    def __init__(self, items: Iterator[Item]) -> None:
        self.items, self.read = items, 0

    def __iter__(self) -> "Counted[Item]":
        return self

    def __next__(self) -> Item:
        self.read += 1
        return next(self.items)

    def state(self) -> State:
        return State(data=self.read)

    def restore(self, state: State) -> None:
        """Reads on to where the stream was."""
        for _ in islice(self.items, state.data - self.read):
            pass
        self.read = state.data


class Record:
    """A list of plain data that grows by a step's figures."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def state(self) -> State:
        return State(data=self.lines)

    def restore(self, state: State) -> None:
        self.lines[:] = state.data


class Saves:
    """The checkpoints of one stage, the newest `last` of them, one every `every` steps; and whether
    the run should stop.
    """

    def __init__(
        self, folder: Path, every: int = 50, last: int = 2, stop: Event | None = None
    ) -> None:
        self.folder, self.every, self.last = folder, every, last
        self.stop = stop or Event()
        self.origin: Mapping[str, Any] = {}  # hashes of what the run is made of, for the record
        self.before: Callable[[], None] = lambda: (
            None
        )  # puts on disk what a checkpoint relies on: the log of its steps
        self.damaged: list[str] = []  # in words, of those that were passed over

    def kept(self, step: int, steps: int, parts: Mapping[str, Holds]) -> None:
        """After `step` of `steps`: keeps what is to be kept. Raises Stopped, having kept it, where
        the run is to stop.
        """
        if step == steps:
            return
        stopping = self.stop.is_set()
        if stopping or step % self.every == 0:
            self.write(step, parts)
        if stopping:
            raise Stopped(
                f"stopped after step {step} of {steps} of stage {self.folder.parent.name}; --resume goes on from there"
            )

    def write(self, step: int, parts: Mapping[str, Holds]) -> None:
        """Raises ModelError where it cannot be written; the earlier ones are as they were then."""
        from safetensors.torch import save

        states = {name: part.state() for name, part in parts.items()}
        tensors = {
            f"{name}/{key}": t.detach().cpu().contiguous()
            for name, s in states.items()
            for key, t in s.tensors.items()
        }
        told = {
            "step": step,
            "origin": self.origin,
            "parts": {name: s.data for name, s in states.items()},
        }
        texts = {TENSORS: save(tensors), DATA: _json(told)}
        sums = {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
        self.before()
        with committed(self.folder / f"{step:08d}", holds=(MANIFEST,)) as place:
            for name, text in {**texts, MANIFEST: _json({"sha256": sums, "step": step})}.items():
                (place / name).write_bytes(text)
        for old in self.steps()[: -self.last]:
            shutil.rmtree(self.folder / f"{old:08d}", ignore_errors=True)

    def drawing(self, done: int, total: int) -> None:
        """While a stage that keeps nothing draws. Raises Stopped where the run is to stop."""
        if self.stop.is_set():
            raise Stopped(
                f"stopped while stage {self.folder.parent.name} drew its samples; --resume begins the stage anew"
            )

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, damaged or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and p.is_dir())

    def restored(self, parts: Mapping[str, Holds], logged: int) -> int:
        """Puts every part back to the newest whole checkpoint of at most `logged` steps; the step
        of it, 0 where there is none.

        One that is damaged, or newer than the log, is told in `damaged`, removed, and passed over
        for the one before. Raises ModelError where a whole one is of another stage.
        """
        for step in reversed(self.steps()):
            place = self.folder / f"{step:08d}"
            try:
                if step > logged:
                    raise ValueError(f"the log ends with step {logged}")
                tensors, told = read(place, step)
            except (OSError, ValueError) as failure:
                self.damaged.append(f"the checkpoint of step {step} was passed over: {failure}")
                shutil.rmtree(place, ignore_errors=True)
                continue
            if told.keys() != parts.keys():
                raise ModelError(
                    f"{place} holds {', '.join(sorted(told))}, and the stage needs {', '.join(sorted(parts))}"
                )
            for name, part in parts.items():
                own = {
                    k.removeprefix(f"{name}/"): t
                    for k, t in tensors.items()
                    if k.startswith(f"{name}/")
                }
                part.restore(State(own, told[name]))
            return step
        return 0

    def clear(self) -> None:
        """The stage is done: what it made stands elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read(place: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's tensors and data by part. Raises ValueError or OSError where a single bit is
    not as it was written.
    """
    from safetensors.torch import load

    manifest = (place / MANIFEST).read_bytes()
    try:
        held = json.loads(manifest)
        sums = dict(held["sha256"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{MANIFEST} cannot be read") from None
    if (
        _json(held) != manifest
        or held.keys() != {"step", "sha256"}
        or held["step"] != step
        or sums.keys() != {TENSORS, DATA}
    ):
        raise ValueError(f"{MANIFEST} is not as it was written")
    texts = {name: (place / name).read_bytes() for name in sums}
    for name, text in texts.items():
        if hashlib.sha256(text).hexdigest() != sums[name]:
            raise ValueError(f"{name} is not as it was written")
    return load(texts[TENSORS]), json.loads(texts[DATA])["parts"]


def _json(data: Any) -> bytes:
    try:
        return json.dumps(data, sort_keys=True).encode()
    except TypeError as error:
        raise ModelError(f"a checkpoint cannot hold this: {error}") from None
