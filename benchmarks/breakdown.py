"""Measures where the time of a step goes, for each workload of `whet bench`.

    python benchmarks/breakdown.py [worst typical vocabulary ppo] [--size 5M] [--threads 2]

It times whet's kernels one by one and torch's operations by its profiler. The shares are of the
step; the rest is Python, dispatch and small operations. Profiling slows a step down, so the seconds
are of a second run without it. Takes minutes: more than 10 on 2 cores that were shared with others.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from whet.bench import whet_side
from whet.bench.workload import WORKLOADS, prepare, workload
from whet.kernels import Kernels

STEPS = 4  # of which the first is left out
KERNELS = {
    "step": "decoding: all layers of a step",
    "product": "decoding: logits, prompts",
    "draw": "decoding: drawing",
    "pack": "decoding: packing weights",
    "attention": "attention, forward",
    "attention_back": "attention, backward",
    "logprobs": "log-probabilities",
    "logprobs_back": "log-probabilities",
    **dict.fromkeys(("rms_norm", "rms_norm_back", "heads_", "heads_back", "swiglu", "swiglu_back"),
    "norms, heads, gates"),
}  # fmt: skip
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")
OPTIMIZER = (
    "aten::_fused_adamw_",
    "aten::_foreach_norm",
    "aten::_foreach_mul_",
    "aten::linalg_vector_norm",
)


def timed(seconds: dict[str, float]) -> Any:
    """Kernels.call, with the seconds of each kernel added up under what it is for."""
    plain = Kernels.call

    def call(self: Kernels, name: str, *arguments: Any, **options: Any) -> None:
        began = time.perf_counter()
        plain(self, name, *arguments, **options)
        seconds[KERNELS.get(name, name)] += time.perf_counter() - began

    return plain, call


def shares(name: str, size: str) -> tuple[float, dict[str, float]]:
    """Seconds of a step, and of what it is made of."""
    with tempfile.TemporaryDirectory() as scratch:
        work, model = workload(name), Path(scratch) / "model"
        prepare(work, size, model)
        whole = statistics.median(s["step"] for s in whet_side.run(work, model, STEPS)[1:])
        seconds: dict[str, float] = defaultdict(float)
        plain, Kernels.call = timed(seconds)
        try:
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                steps = whet_side.run(work, model, STEPS)
        finally:
            Kernels.call = plain
    for event in seen.key_averages():
        kind = (
            "training: matrix products"
            if event.key in PRODUCTS
            else "optimizer, clipping"
            if event.key in OPTIMIZER
            else "other torch operations"
        )
        seconds[kind] += event.self_cpu_time_total / 1e6 if event.key.startswith("aten::") else 0.0
    slower = sum(s["step"] for s in steps)
    parts = {kind: value / slower for kind, value in seconds.items()}
    return whole, parts | {"Python, dispatch": 1 - sum(parts.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "works", nargs="*", default=["worst", "typical", "vocabulary", "ppo"], metavar="WORK"
    )
    parser.add_argument("--size", default="5M")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    columns = {name: shares(name, arguments.size) for name in arguments.works if name in WORKLOADS}
    kinds = sorted(
        {k for _, parts in columns.values() for k in parts},
        key=lambda k: -max(f.get(k, 0) for _, f in columns.values()),
    )
    print(f"| of a step ({arguments.size}) | {' | '.join(columns)} |")
    print(f"|---|{'---|' * len(columns)}")
    print(f"| seconds | {' | '.join(f'{whole:.2f}' for whole, _ in columns.values())} |")
    for kind in kinds:
        print(
            f"| {kind} | {' | '.join(f'{parts.get(kind, 0):.1%}' for _, parts in columns.values())} |"
        )


if __name__ == "__main__":
    main()
