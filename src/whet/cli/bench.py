"""`whet bench`: the side-by-side timings, as a table or as JSON."""

import json
from argparse import Namespace
from typing import Any

from rich.console import Console
from rich.table import Table

from whet.bench import compare, workload
from whet.errors import WhetError, did_you_mean

WIDE = 140  # columns, where no terminal says how many there are
USUAL = ("worst", "typical", "vocabulary", "ppo", "sampling")


def bench(given: Namespace) -> int:
    """Runs the works named, or the usual ones. Raises WhetError for what cannot be run."""
    if given.size not in workload.SIZES:
        raise WhetError(
            f"there is no size {given.size!r}{did_you_mean(given.size, workload.SIZES)}"
        )
    if min(given.rounds, given.steps) < 1 or given.threads < 0:
        raise WhetError("rounds and steps are 1 or more, threads 0 (all cores) or more")
    works = [workload.workload(name) for name in given.works or USUAL]
    plan = compare.Plan(
        works, given.size, given.rounds, given.steps, given.threads, given.device, given.vllm
    )
    progress = Console(stderr=True)
    found = compare.compare(plan, lambda text: progress.print(text, style="dim", highlight=False))
    if given.json:
        print(json.dumps(found, indent=1))
        return 0
    console = Console()
    console = console if console.is_terminal else Console(width=WIDE)
    for line in _about(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_table(found))
    for name, told in found["works"].items():
        console.print(f"{name}: {told['about']}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _about(found: dict[str, Any]) -> list[str]:
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['threads']} threads: {machine['flops'] / 1e9:.0f} GFLOP/s, {machine['bytes'] / 1e9:.1f} GB/s; {versions}"
    ]
    absent = [compare.NEEDS[side] for side in found["missing"]]
    if absent:
        lines.append(
            f"not installed, so not measured: {', '.join(absent)} (pip install 'whet[dev]' brings them)"
        )
    return lines


def _table(found: dict[str, Any]) -> Table:
    table = Table(title=f"{found['size']} parameters, float32; medians, ranges in brackets")
    for column in (
        "work",
        "side",
        "step (s)",
        "sampling (s)",
        "update (s)",
        "memory (MiB)",
        "tokens/s",
    ):
        table.add_column(column, justify="left" if column in ("work", "side") else "right")
    for name, told in found["works"].items():
        for side, each in told["sides"].items():
            cells = [_spread(each.get(key)) for key in ("step", "sample", "update")]
            speed = told["sampling"].get(side)
            table.add_row(
                name,
                side,
                *cells,
                f"{each['memory']['median']:,.0f}",
                "" if speed is None else f"{speed:,.0f}",
            )
        limits = [
            f"{told['limit'][k]:.2f}" if k in told["limit"] else "" for k in ("sample", "update")
        ]
        table.add_row(
            name, "limit", "", *limits, "", f"{told['tokens'] / told['limit']['sample']:,.0f}"
        )
        table.add_row(name, "whet / peer", *_verdict(told), end_section=True)
    return table


def _verdict(told: dict[str, Any]) -> list[str]:
    def times(value: float | None) -> str:
        return "" if value is None else f"{value:.2f} x"

    memory = "" if told["memory_ratio"] is None else f"{told['memory_ratio']:.2f} of it"
    sampling = f"{told['sampling_share']:.0%} of limit"
    update = f"{told['update_share']:.0%} of limit" if "update_share" in told else ""
    return [times(told["ratio"]), sampling, update, memory, times(told["sampling_ratio"])]


def _spread(given: dict[str, float] | None) -> str:
    return (
        "" if given is None else f"{given['median']:.2f} ({given['least']:.2f}-{given['most']:.2f})"
    )
