"""Runs the sides in turn, each in its own process; computes medians, ranges and ratios of their times."""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whet.bench import roofline
from whet.bench.workload import Workload, prepare
from whet.errors import WhetError

NEEDS = {"trl": "trl", "generate": "transformers"}  # side: module
SECONDS = 3600  # for one process


@dataclass(frozen=True)
class Plan:
    """The workloads and how often to run them.

    `rounds` counts the processes of each side, `steps` the steps of each process; the first step is
    left out.
    """

    works: Sequence[Workload]
    size: str = "5M"
    rounds: int = 2
    steps: int = 3
    threads: int = 0
    device: str = "cpu"
    vllm: str | None = None  # the Python of an environment with vLLM's CPU build

    @property
    def cores(self) -> int:
        return self.threads or os.cpu_count() or 1


def missing() -> list[str]:
    """Sides whose libraries are not installed."""
    return [side for side, module in NEEDS.items() if importlib.util.find_spec(module) is None]


def compare(plan: Plan, progress: Callable[[str], None]) -> dict[str, Any]:
    """All measurements, as `--json` prints them; `progress` gets a line before each process."""
    absent = missing()
    possible = [s for s in ("whet", "trl", "whet-sample", "generate") if s not in absent] + (
        ["vllm"] if plan.vllm else []
    )
    results: dict[str, Any] = {"works": {}, "versions": {}, "missing": absent}
    with tempfile.TemporaryDirectory(prefix="whet-bench-") as scratch:
        rates = list[dict[str, float]]()
        for i, work in enumerate(plan.works):
            folder = Path(scratch) / str(i)
            prepare(work, plan.size, folder / "model")
            sides = [s for s in possible if not (work.only_sampling and s in ("whet", "trl"))]
            reports: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for turn in range(plan.rounds):
                rates.append(side_report("limit", work, folder, plan))
                for side in sides:
                    progress(f"{work.name}, {plan.size}: {side}, round {turn + 1} of {plan.rounds}")
                    reports[side].append(side_report(side, work, folder, plan))
            rate = middle(rates)
            results["works"][work.name] = summarised(work, plan.size, reports, rate)
            for each in reports.values():
                results["versions"] |= each[0]["versions"]
    results["machine"] = {"processor": processor(), "threads": plan.cores, **middle(rates)}
    return results | {
        "size": plan.size,
        "ratios": {name: w["ratio"] for name, w in results["works"].items()},
    }


def middle(rates: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(r[key] for r in rates) for key in rates[0]}


def side_report(side: str, work: Workload, folder: Path, plan: Plan) -> dict[str, Any]:
    """The report of one process of a side. Raises WhetError where it failed."""
    order: dict[str, Any] = {
        "work": asdict(work),
        "model": str(folder / "model"),
        "steps": plan.steps,
        "threads": plan.cores,
        "scratch": str(folder / side),
    }
    if side == "vllm":  # its environment has no whet, which knows the workloads
        order["positions"] = work.prompt + work.cap + 1
        order["lengths"] = [work.lengths(step).tolist() for step in range(plan.steps)]
        order["prompts"] = [
            [[int(w[1:]) for w in q.split()] for q in work.questions(step)]
            for step in range(plan.steps)
        ]
    order_file = folder / "work.json"
    order_file.write_text(json.dumps(order), encoding="utf-8")
    python = plan.vllm if side == "vllm" and plan.vllm else sys.executable
    command = [python, "-m", "whet.bench.side", side, str(order_file)]
    if side == "vllm":
        command = [python, str(Path(__file__).with_name("vllm_side.py")), str(order_file)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(plan.cores),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if plan.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"it ended with {ended.returncode}"])[-1]
        raise WhetError(f"bench: {side} failed on {work.name}: {last}")
    # Some libraries print more after the report, as they shut down.
    return json.loads(next(x for x in reversed(ended.stdout.splitlines()) if x.startswith("{")))


def summarised(
    work: Workload, size: str, reports: dict[str, list[dict[str, Any]]], rate: dict[str, float]
) -> dict[str, Any]:
    """Medians and ranges of the sides of a workload, their ratios and their shares of the limit."""
    sides = {side: figures(each) for side, each in reports.items()}
    tokens, whet = int(work.lengths(0).sum()), sides.get("whet")
    summary: dict[str, Any] = {"about": work.about, "tokens": tokens, "sides": sides}
    lowest = {"sample": roofline.sampling(work, size, 1, rate)}
    if whet is not None:
        lowest["update"] = roofline.update(work, size, 1, rate)
        summary["update_share"] = lowest["update"] / whet["update"]["median"]
    summary["limit"] = lowest
    summary["sampling_share"] = lowest["sample"] / sides["whet-sample"]["sample"]["median"]
    summary["sampling"] = {
        s: tokens / sides[s]["sample"]["median"]
        for s in ("whet-sample", "generate", "vllm")
        if s in sides
    }
    summary["ratio"] = _ratio(sides, "trl", "whet", "step")
    summary["memory_ratio"] = _ratio(sides, "whet", "trl", "memory")
    summary["sampling_ratio"] = _ratio(sides, "generate", "whet-sample", "sample")
    return summary


def _ratio(sides: dict[str, Any], above: str, below: str, what: str) -> float | None:
    """The ratio of two sides' medians; None where one was not measured."""
    if above not in sides or below not in sides:
        return None
    return sides[above][what]["median"] / sides[below][what]["median"]


def figures(reports: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{phase: median and range in seconds}, and memory in MiB.

    The first step of each process is left out.
    """
    steps = [s for r in reports for s in (r["steps"][1:] or r["steps"])]
    phases = {key: spread([s[key] for s in steps]) for key in steps[0]}
    return phases | {"memory": spread([r["memory"] for r in reports])}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.partition(":")[2].strip() for x in lines if x.startswith("model name")),
        platform.processor(),
    )
