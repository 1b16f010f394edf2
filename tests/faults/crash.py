"""Kills runs and goes on with them: `make crash`, `make crash KILLS=12` for a short form.

One recipe of every kind of stage that trains runs undisturbed; then again and again it is killed
with SIGKILL, at a random moment or right before one of the calls that write its files, up to three
times on the way, and gone on with. What it has left is compared with the undisturbed run: the
weights of every stage, every line of the log but its times, every sample. Then a smaller recipe,
with every kind of stage, is killed by strace right before each system call of its save path
(`sweep.py`), and meets simulated power cuts (`power.py`): before each call and each fsync from
KILLS=200 on, before a few below that. The last line reads `kills N, differing 0`.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name = "crash"
result = "kimi"
save = { every = 3, last = 2 }
task = { name = "chain", operations = 1 }
evaluation = { problems = 20, max_tokens = 8 }
[model.shape]
hidden = 32
layers = 1
heads = 2
kv_heads = 2
ffn = 64
[[stage]]
name = "base"
kind = "sft"
mix = { direct = 0.5, careful = 0.5 }
steps = 40
batch = 16
optimizer = { kind = "muon", lr = 0.02, lr_rest = 0.01, schedule = "cosine" }
[[stage]]
name = "order"
kind = "rank"
by = "reward"
problems = 200
samples = 6
max_tokens = 8
[[stage]]
name = "rm"
kind = "reward_model"
data = "order"
steps = 5
optimizer = { lr = 3e-3 }
[[stage]]
name = "dpo"
kind = "dpo"
start = "base"
data = "order"
steps = 5
lora = { rank = 2 }
optimizer = { lr = 1e-3 }
[[stage]]
name = "ppo"
kind = "rl"
start = "base"
algorithm = "ppo"
override = { warmup = 2 }
steps = 5
prompts = 4
samples = 4
max_tokens = 8
probe = 2
probe_every = 2
critic = { start = "rm", lr = 1e-3 }
optimizer = { lr = 1e-3, schedule = "linear", warmup = 2 }
[[stage]]
name = "kimi"
kind = "rl"
algorithm = "kimi"
override = { updates = 2, correction = "token" }
ahead = 1
pool = 12
steps = 5
prompts = 4
samples = 4
max_tokens = 8
optimizer = { lr = 1e-3 }
"""
# Ends the process, as SIGKILL would, right before the N-th call that changes what is on disk; or
# has the disk full from there on.
AT_CALL = """
import os, sys
left = int(os.environ["CRASH_AT"])
def counted(event, arguments):
    global left
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & flags
    moves = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
    if (writes and "crash" in str(arguments[0])) or event in moves:
        left -= 1
        if left == 0 and not os.environ.get("CRASH_FULL"):
            os.kill(os.getpid(), 9)
        if left <= 0 and writes and os.environ.get("CRASH_FULL"):
            raise OSError(28, "No space left on device", str(arguments[0]))
sys.addaudithook(counted)
from whet.cli.main import main
code = main(sys.argv[1:])
print("calls", int(os.environ["CRASH_AT"]) - left, file=sys.stderr)
sys.exit(code)
"""


def started(
    folder: Path, *words: str, at: int | None = None, full: bool = False
) -> "subprocess.Popen[str]":
    command = (
        [sys.executable, "-m", "whet.cli.main"] if at is None else [sys.executable, "-c", AT_CALL]
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CRASH_AT": str(at or 0),
        "CRASH_FULL": "1" if full else "",
    }
    arguments = ["run", str(folder / "crash.toml"), "--runs", str(folder), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=pipe, text=True
    )


def ended(process: "subprocess.Popen[str]") -> str:
    """What it said, having ended well."""
    told = process.communicate(timeout=600)[1]
    if process.returncode != 0:
        raise RuntimeError(f"exit {process.returncode}: {told[-2000:]}")
    return told


def left(run: Path) -> dict[str, Any]:
    """All that a finished run has left, times aside."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or path.name in ("report.html", "summary.json", "metrics.jsonl"):
            continue
        found[name] = path.read_bytes()
    log = run / "metrics.jsonl"  # of a run whose stages only measure there is none
    lines = [json.loads(line) for line in (log.read_text().splitlines() if log.exists() else ())]
    found["metrics.jsonl"] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    summary = json.loads((run / "summary.json").read_text())
    for line in summary["stages"]:
        line.pop("seconds")
    found["summary.json"] = {k: v for k, v in summary.items() if k != "seconds"}
    return found


def moments(seconds: float, calls: int, rng: random.Random) -> Iterator[list[tuple[str, float]]]:
    """For each run, its one to three deaths: after so many seconds, or right before a call. The
    calls are gone through in turn.
    """
    order = itertools.cycle(rng.sample(range(1, calls + 1), calls))
    while True:
        yield [
            ("call", float(next(order)))
            if rng.random() < 0.6
            else ("second", rng.uniform(0, seconds))
            for _ in range(rng.choice([1, 1, 1, 2, 3]))
        ]


def killed(folder: Path, deaths: list[tuple[str, float]]) -> int:
    """A run that dies so, and goes on to its end. Returns how many deaths it came to before it was
    done.
    """
    (folder / "crash.toml").write_text(RECIPE)
    came = 0
    for kind, moment in deaths:
        go_on = ["--resume"] if (folder / "crash" / "recipe.toml").exists() else ["--overwrite"]
        process = started(folder, *go_on, at=int(moment) if kind == "call" else None)
        try:
            process.communicate(timeout=moment if kind == "second" else 600)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode not in (0, -9):
            raise RuntimeError(f"after {kind} {moment}: exit {process.returncode}")
        came += process.returncode == -9
    ended(
        started(
            folder, "--resume" if (folder / "crash" / "recipe.toml").exists() else "--overwrite"
        )
    )
    return came


def at_random(kills: int, seed: int = 0) -> tuple[int, int]:
    """How many deaths there were, and how many runs have left other files."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        (whole / "crash.toml").write_text(RECIPE)
        began = time.monotonic()
        calls = int(ended(started(whole, at=1 << 30)).split("calls")[-1])
        seconds, expected = time.monotonic() - began, left(whole / "crash")
        print(
            f"an undisturbed run: {seconds:.1f} s, {calls} calls that write, {len(expected)} files"
        )
        total = differing = 0
        for number, deaths in enumerate(moments(seconds, calls, rng)):
            if total >= kills:  # one that comes after its run is done is none
                break
            folder = Path(place) / f"run{number}"
            folder.mkdir()
            total += killed(folder, deaths)
            found = left(folder / "crash")
            odd = [
                name
                for name in sorted(found.keys() | expected.keys())
                if found.get(name) != expected.get(name)
            ]
            if odd:
                differing += 1
                print(f"differs after {deaths}: {', '.join(odd[:5])}")
            shutil.rmtree(folder)
    print(f"at random: {total} kills, {differing} differing", flush=True)
    return total, differing


def main(kills: int) -> int:
    import power
    from sweep import killed, sweep, unable

    why = unable()
    if why:
        print(f"{why}: all deaths come at random moments and before calls that an audit hook sees")
    total, differing = at_random(kills if why else kills // 2)
    if not why:
        came, bad = sweep(killed, 0 if kills >= 200 else kills - kills // 2)
        total, differing = total + came, differing + bad
    cuts, wrong = power.main(1 if kills >= 200 else 240 // kills)
    print(f"power cuts {cuts}, differing {wrong}")
    print(f"kills {total}, differing {differing}")
    return int(differing + wrong > 0 or total == 0 or cuts == 0)


if __name__ == "__main__":
    sys.exit(main(int(os.environ.get("KILLS", "200"))))
