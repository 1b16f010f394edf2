"""Checkpoints of a stage's loop: whole, verified when read, and enough to resume bit for bit.

A checkpoint is a directory STAGE/checkpoints/STEP with state.safetensors (weights, moments),
state.json (data other than tensors) and manifest.json (the SHA-256 of both). It is written aside,
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

TENSORS, DATA, MANIFEST = "state.safetensors", "state.json", "manifest.json"
Item = TypeVar("Item")


@dataclass(frozen=True)
class State:
    """The state of one part of a loop: tensors, and data that JSON can hold."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    data: Any = None


class Stateful(Protocol):
    """A part of a loop that changes from step to step; equal states lead to equal next steps."""

    def state(self) -> State: ...
    def restore(self, state: State) -> None: ...


class Counted(Generic[Item]):
    """A stream whose items the seed fixes, and the number of items read so far."""

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
        """Skips the items that were read before the checkpoint."""
        for _ in islice(self.items, state.data - self.read):
            pass
        self.read = state.data


class History:
    """The figures of every step so far."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def state(self) -> State:
        return State(data=self.lines)

    def restore(self, state: State) -> None:
        self.lines[:] = state.data


class Checkpoints:
    """The checkpoints of one stage: one every `every` steps, of which the newest `last` stay.

    `stop` is set when the run should stop; the next step then ends with a checkpoint.
    """

    def __init__(
        self, folder: Path, every: int = 50, last: int = 2, stop: Event | None = None
    ) -> None:
        self.folder, self.every, self.last = folder, every, last
        self.stop = stop or Event()
        self.origin: Mapping[str, Any] = {}  # provenance of the run, copied into every checkpoint
        # puts the log on disk before a checkpoint that relies on it
        self.before: Callable[[], None] = lambda: None
        self.damaged: list[str] = []  # a sentence for every checkpoint that was passed over

    def keep(self, step: int, steps: int, parts: Mapping[str, Stateful]) -> None:
        """Writes the checkpoint that is due after `step` of `steps`.

        Raises Stopped, after writing one, where the run should stop.
        """
        if step == steps:
            return
        stopping = self.stop.is_set()
        if stopping or step % self.every == 0:
            self.write(step, parts)
        if stopping:
            raise Stopped(
                f"stopped after step {step} of {steps} of stage {self.folder.parent.name}; "
                "--resume goes on from there"
            )

    def write(self, step: int, parts: Mapping[str, Stateful]) -> None:
        """Raises ModelError where the checkpoint cannot be written; earlier ones stay intact."""
        from safetensors.torch import save

        states = {name: part.state() for name, part in parts.items()}
        tensors = {
            f"{name}/{key}": t.detach().cpu().contiguous()
            for name, s in states.items()
            for key, t in s.tensors.items()
        }
        data = {name: s.data for name, s in states.items()}
        files = {
            TENSORS: save(tensors),
            DATA: _json({"step": step, "origin": self.origin, "parts": data}),
        }
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        files[MANIFEST] = _json({"sha256": sums, "step": step})
        self.before()
        with committed(self.folder / f"{step:08d}", holds=(MANIFEST,)) as place:
            for name, content in files.items():
                (place / name).write_bytes(content)
        for old in self.steps()[: -self.last]:
            shutil.rmtree(self.folder / f"{old:08d}", ignore_errors=True)

    def raise_if_stopped(self, done: int, total: int) -> None:
        """Progress of sampling in a stage without checkpoints. Raises Stopped on request."""
        if self.stop.is_set():
            raise Stopped(
                f"stopped while stage {self.folder.parent.name} drew its samples; --resume begins "
                "the stage anew"
            )

    def steps(self) -> list[int]:
        """The steps of the checkpoints on disk, damaged or not, in ascending order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and p.is_dir())

    def restore(self, parts: Mapping[str, Stateful], logged: int) -> int:
        """Restores every part from the newest whole checkpoint of at most `logged` steps.

        Returns the checkpoint's step, 0 where there is none. A checkpoint that is damaged, or newer
        than the log, is removed and named in `damaged`. Raises ModelError where a whole checkpoint
        belongs to another stage.
        """
        for step in reversed(self.steps()):
            place = self.folder / f"{step:08d}"
            try:
                if step > logged:
                    raise ValueError(f"the log ends with step {logged}")
                tensors, data = read(place, step)
            except (OSError, ValueError) as failure:
                self.damaged.append(f"the checkpoint of step {step} was passed over: {failure}")
                shutil.rmtree(place, ignore_errors=True)
                continue
            if data.keys() != parts.keys():
                raise ModelError(
                    f"{place} holds {', '.join(sorted(data))}, and the stage needs {', '.join(sorted(parts))}"
                )
            for name, part in parts.items():
                prefix = f"{name}/"
                own = {
                    k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)
                }
                part.restore(State(own, data[name]))
            return step
        return 0

    def clear(self) -> None:
        """Removes the checkpoints of a stage that is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read(place: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the data of a checkpoint, by part.

    Raises ValueError or OSError where a single bit differs from what was written.
    """
    from safetensors.torch import load

    written = (place / MANIFEST).read_bytes()
    try:
        manifest = json.loads(written)
        sums = dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{MANIFEST} cannot be read") from None
    if (
        _json(manifest) != written
        or manifest.keys() != {"step", "sha256"}
        or manifest["step"] != step
        or sums.keys() != {TENSORS, DATA}
    ):
        raise ValueError(f"{MANIFEST} is not as it was written")
    files = {name: (place / name).read_bytes() for name in sums}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise ValueError(f"{name} is not as it was written")
    return load(files[TENSORS]), json.loads(files[DATA])["parts"]


def _json(data: Any) -> bytes:
    try:
        return json.dumps(data, sort_keys=True).encode()
    except TypeError as error:
        raise ModelError(f"a checkpoint cannot hold this: {error}") from None
