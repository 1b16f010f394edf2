"""Measures every row of the table of algorithms from one base model on one task.

    python benchmarks/rows.py [--seeds 5] [--rows ppo,grpo] [--out runs/rows]

It prints accuracy by samples drawn and by seconds, mean ± sd over seeds. The base is that of
recipes/r1-zero-mini.toml, trained once. A run is 70 rollouts of 32 prompts x 8 samples; every row
has the same optimizer. Accuracy on the way is that of the rollouts (new problems, temperature 1),
at the end that of 1,000 test problems. 1 to 2 hours on 2 cores for all rows and 5 seeds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = ("reinforce", "rloo", "reinforce_pp", "ppo", "ppo_orz", "vapo", "grpo", "dr_grpo", "dapo",
"gspo", "cispo", "kimi", "oreal",
        "distil_on_policy")  # fmt: skip
STEPS, PROMPTS, SAMPLES = 70, 32, 8
POINTS = (
    10,
    20,
    35,
    70,
)  # steps at which accuracy is read off, as the mean over the 5 rollouts before
CRITIC = "{ lr = 1e-3 }"
# What a miniature of 70 rollouts changes in a row, and why, stands in docs/results/algorithms.md.
CHANGES = {
    "ppo": f"critic = {CRITIC}",
    "ppo_orz": f"critic = {CRITIC}",
    "vapo": f"critic = {CRITIC}\noverride = {{ warmup = 10 }}",
    "oreal": f"critic = {CRITIC}",
    "kimi": "pool = 512",
}


def recipe(row: str, seed: int, base: Path, teacher: Path | None) -> str:
    extra = CHANGES.get(row, "") + (
        f'\nreference = "{teacher}"' if row == "distil_on_policy" else ""
    )
    return f"""
name = "{row}-{seed}"
seed = {seed}
[task]
name = "chain"
operations = 6
[model]
path = "{base}"
[evaluation]
problems = 1000
max_tokens = 64
[[stage]]
name = "rl"
kind = "rl"
algorithm = "{row}"
steps = {STEPS}
prompts = {PROMPTS}
samples = {SAMPLES}
max_tokens = 64
probe = 0
optimizer = {{ lr = 5e-4 }}
{extra}
"""


def run(out: Path, text: str, name: str) -> dict[str, object]:
    """One run in a process of its own, with one thread; what it left behind. One that is there
    already is not made again.
    """
    path = out / f"{name}.toml"
    kept = out / f"{name}.json"
    if kept.exists() and path.read_text(encoding="utf-8") == text:
        return json.loads(kept.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "whet.cli.main", "run", path.name, "--overwrite"]
    done = subprocess.run(
        command, cwd=out, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-500:]}")
    folder = out / "runs" / name
    lines = [
        json.loads(x) for x in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    steps = [x for x in lines if x["stage"] == "rl"]
    curve = {
        str(p): statistics.mean(x["values"]["accuracy"] for x in steps[max(0, p - 5) : p])
        for p in POINTS
        if p <= len(steps)
    }
    seconds = [sum(x["seconds"].values()) for x in steps]
    drawn = [x["values"]["samples"] for x in steps]
    half = next((i for i, x in enumerate(steps) if x["values"]["accuracy"] >= 0.5), None)
    result = {
        "curve": curve,
        "accuracy": next(s["accuracy"] for s in summary["stages"] if s["name"] == "rl"),
        "samples": sum(drawn),
        "seconds": sum(seconds),
        "update": sum(x["seconds"]["update"] for x in steps),
        "half_samples": None if half is None else sum(drawn[: half + 1]),
        "half_seconds": None if half is None else sum(seconds[: half + 1]),
    }
    kept.write_text(json.dumps(result), encoding="utf-8")
    return result


def cell(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * spread:.{digits}f}"


def reached(results: list[dict], key: str, digits: int) -> str:
    """Mean ± sd over the runs that got there, and how many did."""
    values = [r[key] for r in results if r[key] is not None]
    if not values:
        return "–"
    return cell(values, 1.0, digits) + (
        "" if len(values) == len(results) else f" ({len(values)} of {len(results)})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/rows"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    a = parser.parse_args()
    out = a.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    base = out / "runs/base/base/model"
    if not base.exists():
        text = (ROOT / "recipes/r1-zero-mini.toml").read_text(encoding="utf-8")
        text = (
            text[: text.index("[[stage]]               # R1-Zero")]
            .replace('"r1-zero-mini"', '"base"')
            .replace('result = "rl"\n', "")
        )
        (out / "base.toml").write_text(text, encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "whet.cli.main", "run", "base.toml", "--overwrite"],
            cwd=out,
            check=True,
            capture_output=True,
        )
    rows = a.rows.split(",")
    teacher = out / "runs/dr_grpo-0/rl/model"
    if "distil_on_policy" in rows and not teacher.exists():
        run(out, recipe("dr_grpo", 0, base, None), "dr_grpo-0")
    work = [(row, seed) for seed in range(1, a.seeds + 1) for row in rows]
    with ThreadPoolExecutor(a.jobs) as pool:
        outcomes = list(
            pool.map(lambda w: run(out, recipe(*w, base, teacher), f"{w[0]}-{w[1]}"), work)
        )
    table: dict[str, list[dict]] = {row: [] for row in rows}
    for (row, seed), result in zip(work, outcomes, strict=True):
        table[row].append({"seed": seed, **result})
    (out / "rows.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    points = " | ".join(f"{p * PROMPTS * SAMPLES:,}" for p in POINTS)
    print(
        f"| row | {points} samples | test | samples to 50 % | seconds to 50 % | seconds | of them update |"
    )
    print("|---|" + "---|" * (len(POINTS) + 5))
    for row, results in table.items():
        curve = [cell([r["curve"][str(p)] for r in results], 100) for p in POINTS]
        rest = [
            cell([r["accuracy"] for r in results], 100),
            reached(results, "half_samples", 0),
            reached(results, "half_seconds", 1),
        ]
        rest += [cell([r["seconds"] for r in results]), cell([r["update"] for r in results])]
        print(f"| {row} | " + " | ".join(curve + rest) + " |")


if __name__ == "__main__":
    main()
