"""`whet bench`: the side-by-side timings, as a table or as JSON."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from whet.bench import compare, workload
from whet.cli import terminal
from whet.errors import WhetError, did_you_mean

WIDE = 140  # columns, where no terminal says how many there are
USUAL = ("worst", "typical", "vocabulary", "ppo", "sampling")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "works",
        nargs="*",
        metavar="WORK",
        help="worst, typical, vocabulary, vocabulary-152k, ppo, sampling (default: all but 152k)",
    )
    parser.add_argument("--size", default="5M", help="of the model: 0.2M, 5M, 50M (default 5M)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="processes of each side, in turn (default 2)"
    )
    parser.add_argument(
        "--steps", type=int, default=3, help="of each process; the first is left out (default 3)"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: one GPU, bfloat16 (default cpu)",
    )
    parser.add_argument(
        "--vllm", metavar="PYTHON", help="the Python of an environment with vLLM; sampling only"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def call(arguments: argparse.Namespace) -> int:
    """Runs the works named, or the usual ones. Raises WhetError for what cannot be run."""
    size, rounds, steps = arguments.size, arguments.rounds, arguments.steps
    if size not in workload.SIZES:
        raise WhetError(f"there is no size {size!r}{did_you_mean(size, workload.SIZES)}")
    if min(rounds, steps) < 1 or arguments.threads < 0:
        raise WhetError("rounds and steps are 1 or more, threads 0 (all cores) or more")
    works = [workload.workload(name) for name in arguments.works or USUAL]
    plan = compare.Plan(
        works, size, rounds, steps, arguments.threads, arguments.device, arguments.vllm
    )
    progress = Console(stderr=True)
    result = compare.compare(plan, lambda text: progress.print(text, style="dim", highlight=False))
    if arguments.json:
        print(json.dumps(result, indent=1))
        return 0
    console = Console()
    console = console if console.is_terminal else Console(width=WIDE)
    for line in _about(result):
        terminal.print_plain(console, line)
    console.print(_table(result))
    for name, timings in result["works"].items():
        terminal.print_plain(console, f"{name}: {timings['about']}")
    return 0


def _about(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['threads']} threads: "
        f"{machine['flops'] / 1e9:.0f} GFLOP/s, {machine['bytes'] / 1e9:.1f} GB/s; {versions}"
    ]
    absent = [compare.NEEDS[side] for side in result["missing"]]
    if absent:
        lines.append(
            f"not installed, so not measured: {', '.join(absent)} "
            "(pip install 'whet[dev]' brings them)"
        )
    return lines


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['size']} parameters, float32; medians, ranges in brackets")
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
    for name, timings in result["works"].items():
        for side, each in timings["sides"].items():
            cells = [_spread(each.get(key)) for key in ("step", "sample", "update")]
            speed = timings["sampling"].get(side)
            table.add_row(
                name,
                side,
                *cells,
                f"{each['memory']['median']:,.0f}",
                "" if speed is None else f"{speed:,.0f}",
            )
        limits = [
            f"{timings['limit'][k]:.2f}" if k in timings["limit"] else ""
            for k in ("sample", "update")
        ]
        table.add_row(
            name, "limit", "", *limits, "", f"{timings['tokens'] / timings['limit']['sample']:,.0f}"
        )
        table.add_row(name, "whet / peer", *_verdict(timings), end_section=True)
    return table


def _verdict(timings: dict[str, Any]) -> list[str]:
    def times(value: float | None) -> str:
        return "" if value is None else f"{value:.2f} x"

    memory = "" if timings["memory_ratio"] is None else f"{timings['memory_ratio']:.2f} of it"
    sampling = f"{timings['sampling_share']:.0%} of limit"
    update = f"{timings['update_share']:.0%} of limit" if "update_share" in timings else ""
    return [times(timings["ratio"]), sampling, update, memory, times(timings["sampling_ratio"])]


def _spread(values: dict[str, float] | None) -> str:
    if values is None:
        return ""
    return f"{values['median']:.2f} ({values['least']:.2f}-{values['most']:.2f})"
