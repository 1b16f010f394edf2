"""Every system call of a whole run's save path in turn: the run is killed right before it, or is
told there that the disk is full; then it goes on.

What is left must be what an undisturbed run leaves, to the bit. `make crash` and `make full-disk`
end with these.
"""

import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__:
    from .crash import left
    from .interposed import NEEDS_ROOM, RECIPE, Call, run, unable
else:
    from crash import left
    from interposed import NEEDS_ROOM, RECIPE, Call, run, unable

Case = Callable[
    [Path, Call, random.Random], str
]  # what a run came to; raises Wrong where it ended otherwise than it must


class Wrong(Exception):
    """A run that ended as none may."""


def made(place: Path) -> Path:
    place.mkdir()
    (place / "crash.toml").write_text(RECIPE)
    return place


def goes_on(folder: Path) -> str:
    return "--resume" if (folder / "crash" / "recipe.toml").exists() else "--overwrite"


def here(call: Call, fault: str) -> str:
    return f"{call.name}:{fault}:when={call.number}"


def killed(folder: Path, call: Call, rng: random.Random) -> str:
    """Dies before the call; now and then once more while it goes on."""
    first = run(folder, "--overwrite", inject=here(call, "signal=KILL"))
    if first.code != -9:
        raise Wrong(f"exit {first.code}, not killed: {first.told[-300:]}")
    deaths = 1
    if rng.random() < 0.25:
        name, number = call.name, rng.randint(1, call.number)
        again = run(folder, goes_on(folder), inject=f"{name}:signal=KILL:when={number}")
        if again.code not in (0, -9):
            raise Wrong(f"exit {again.code} of the second: {again.told[-300:]}")
        deaths += again.code == -9
    return f"{deaths} {first.calls[-1].says}"


def refused(folder: Path, call: Call, rng: random.Random) -> str:
    """Is told once, by that call, that the disk is full. Writes that it can do without it may do
    without.
    """
    first = run(folder, "--overwrite", inject=here(call, "error=ENOSPC"))
    said = first.told.strip()
    if (
        first.code not in (0, 2)
        or "Traceback" in said
        or (first.code == 2) != ("No space left on device" in said)
    ):
        raise Wrong(f"exit {first.code}: {said[-300:]}")
    if said.count("\n"):
        raise Wrong(f"more than a line: {said[-300:]}")
    return f"{int(first.code == 2)} {call.says}"


def positions(calls: Sequence[Call], needs_room: bool) -> list[Call]:
    """Closing changes nothing on disk; for the others, those that a full disk can refuse."""
    if not needs_room:
        return [c for c in calls if c.name != "close"]
    return [
        c for c in calls if c.name in NEEDS_ROOM and (c.name != "openat" or "O_CREAT" in c.says)
    ]


def undisturbed(place: Path) -> tuple[list[Call], dict[str, Any]]:
    folder = made(place)
    told = run(folder, inject="")
    if told.code != 0:
        raise RuntimeError(f"exit {told.code}: {told.told[-2000:]}")
    return told.calls, left(folder / "crash")


def sweep(case: Case, most: int = 0, seed: int = 0) -> tuple[int, int]:
    """Each call in turn, or `most` of them at even distances. Returns how many faults came, and how
    many runs differed or ended wrongly.
    """
    rng, faults, differing, reached = random.Random(seed), 0, 0, Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        calls, expected = undisturbed(place / "whole")
        wanted = positions(calls, needs_room=case is refused)
        chosen = wanted[:: max(1, len(wanted) // most)][:most] if most else wanted
        for call in chosen:
            folder = made(place / "run")
            try:
                came, _, says = case(folder, call, rng).partition(" ")
                faults += int(came)
                reached[says] += 1
                done = run(folder, goes_on(folder))
                if done.code != 0:
                    raise Wrong(f"exit {done.code} of what went on: {done.told[-300:]}")
                found = left(folder / "crash")
                odd = [
                    n
                    for n in sorted(found.keys() | expected.keys())
                    if found.get(n) != expected.get(n)
                ]
                if odd:
                    raise Wrong(f"left other {', '.join(odd[:5])}")
            except Wrong as wrong:
                differing += 1
                print(f"{case.__name__} at {call.says}: {wrong}", flush=True)
            shutil.rmtree(folder)
    missed = Counter(c.says for c in chosen) - reached
    if missed:
        print(f"not reached: {'; '.join(missed)}")
    by_name = ", ".join(f"{n} {name}" for name, n in Counter(c.name for c in chosen).most_common())
    print(
        f"{case.__name__}: {len(chosen)} of {len(wanted)} calls of the save path ({by_name}), "
        f"{missed.total()} not reached"
    )
    return faults, differing + bool(missed.total() and not differing)


if __name__ == "__main__":
    if why := unable():
        sys.exit(why)
    came, bad = sweep({"killed": killed, "refused": refused}[sys.argv[1]], int(sys.argv[2]))
    sys.exit(int(bad > 0 or not came))
