"""Runs on disks that fill up: `make full-disk`, `make full-disk SIZES=3` for a short form.

The recipe of `crash` runs in a tmpfs of so many KiB, in a mount namespace of its own. It must end
with one line and without a traceback; with room made, it goes on, and what it has left is what a
run with room leaves. Then a smaller recipe, with every kind of stage, is told by strace that the
disk is full, once, at each system call of its save path that takes room (`sweep.py`): at each from
SIZES=40 on, at as many as SIZES below that. The last line reads `full disks N, differing 0`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

if __package__:
    from .crash import RECIPE, ended, left, started
else:
    from crash import RECIPE, ended, left, started

ROOM = "size=256m"


def inner(place: Path, kib: int) -> None:
    """Within the namespace: prints what became of a run in `kib`, as JSON."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)], check=True)
    (place / "crash.toml").write_text(RECIPE)
    process = started(place)
    told = process.communicate(timeout=600)[1]
    full = process.returncode != 0
    if full:
        subprocess.run(["mount", "-o", f"remount,{ROOM}", str(place)], check=True)
        resumed = started(
            place, "--resume" if (place / "crash" / "recipe.toml").exists() else "--overwrite"
        )
        ended(resumed)
    found = left(place / "crash")
    told_files = {name: str(hash_of(value)) for name, value in found.items()}
    print(json.dumps({"code": process.returncode, "told": told, "files": told_files}))


def hash_of(value: object) -> str:
    import hashlib

    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def tried(kib: int) -> dict[str, object]:
    """One disk of that size. Raises OSError or CalledProcessError where no namespace can be made."""
    with tempfile.TemporaryDirectory() as place:
        command = ["unshare", "-rm", sys.executable, str(Path(__file__).resolve()), place, str(kib)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=900,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def whole() -> tuple[dict[str, str], int]:
    """What a run with room leaves, and how many KiB it takes."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "crash.toml").write_text(RECIPE)
        ended(started(Path(place)))
        size = sum(p.stat().st_blocks * 512 for p in Path(place).rglob("*")) // 1024
        return {name: hash_of(value) for name, value in left(Path(place) / "crash").items()}, size


def main(sizes: int) -> int:
    from sweep import refused, sweep, unable

    expected, most = whole()
    full = differing = 0
    for i in range(sizes):
        kib = 8 + (most * 11 // 10) * i // sizes
        told = tried(kib)
        error = str(told["told"])
        bad = told["files"] != expected or (
            told["code"] != 0
            and ("Traceback" in error or error.count("\n") != 1 or told["code"] != 2)
        )
        full += told["code"] != 0
        differing += bad
        print(
            f"{kib} KiB: exit {told['code']} {error.strip()[-160:]}{'  DIFFERS' if bad else ''}",
            flush=True,
        )
    print(f"of growing size: {full} full disks, {differing} differing", flush=True)
    if why := unable():
        print(f"{why}: no single call was refused")
    else:
        came, bad = sweep(refused, 0 if sizes >= 40 else sizes)
        full, differing = full + came, differing + bad
    print(f"full disks {full}, differing {differing}")
    return int(differing > 0 or not full)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        inner(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        sys.exit(main(int(os.environ.get("SIZES", "40"))))
