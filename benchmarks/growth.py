"""Measures how sampling and the update grow with length, batch, group and parameters.

    python benchmarks/growth.py [--rounds 3] [--threads 2]

It prints seconds, and the exponent between the smallest and the largest value. One thing changes at
a time; lengths are fixed, every group has signal, prompts have 16 tokens. About 2 minutes on 2
cores.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from whet.bench import whet_side
from whet.bench.workload import WORKLOADS, Workload, prepare

PLAIN = replace(WORKLOADS["worst"], prompts=4, samples=8)


def works() -> Iterator[tuple[str, str, list[tuple[int, Workload, str]]]]:
    """(what grows, what is fixed, its values with the work and the size of each)."""
    lengths = [128, 512, 1024, 2048, 4096]
    yield (
        "length",
        "2 x 4 answers, 0.2M",
        [(n, replace(PLAIN, prompts=2, samples=4, length=n, cap=n), "0.2M") for n in lengths],
    )
    batches = [8, 32, 128, 512, 1024]
    yield (
        "batch",
        "groups of 8, 64 tokens, 0.2M",
        [(n, replace(PLAIN, prompts=n // 8, length=64, cap=64), "0.2M") for n in batches],
    )
    groups = [2, 8, 32, 64]
    fixed = "128 answers of 64 tokens to prompts of 256, 0.2M"
    yield (
        "group",
        fixed,
        [
            (n, replace(PLAIN, prompts=128 // n, samples=n, prompt=256, length=64, cap=64), "0.2M")
            for n in groups
        ],
    )
    sizes = {"0.2M": 202_752, "5M": 4_743_168, "50M": 49_561_600}
    yield (
        "parameters",
        "4 x 8 answers of 64 tokens",
        [(n, replace(PLAIN, length=64, cap=64), size) for size, n in sizes.items()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| grows | fixed | value | sampling (s) | update (s) | rest of the step |")
    print("|---|---|---|---|---|---|")
    for what, fixed, rows in works():
        seconds: dict[int, tuple[float, float]] = {}
        for value, work, size in rows:
            with tempfile.TemporaryDirectory() as scratch:
                prepare(work, size, Path(scratch) / "model")
                steps = whet_side.run(work, Path(scratch) / "model", arguments.rounds + 1)[1:]
            sample, update, whole = (
                statistics.median(s[k] for s in steps) for k in ("sample", "update", "step")
            )
            seconds[value] = sample, update
            print(
                f"| {what} | {fixed} | {value:,} | {sample:.3f} | {update:.3f} | "
                f"{1 - (sample + update) / whole:.1%} |",
                flush=True,
            )
        (low, a), (high, b) = next(iter(seconds.items())), list(seconds.items())[-1]
        exponents = [
            f"{math.log(y / x) / math.log(high / low):.2f}" for x, y in zip(a, b, strict=True)
        ]
        print(
            f"| {what} | exponent | {low:,} to {high:,} | {exponents[0]} | {exponents[1]} | |",
            flush=True,
        )


if __name__ == "__main__":
    main()
