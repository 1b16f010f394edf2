"""Compares the forecast of `whet check` with what recipes take: seconds and MiB of each stage.

    python benchmarks/forecast.py recipes/lora-mini.toml recipes/ppo-mini.toml,stage.rl.steps=15

A run is a process of its own. Seconds are of the processor, which busy neighbours stretch less than
the clock's; for models that run on one thread they are the clock's on a free core. A gated stage is
compared for the steps that it took. About 3 minutes for recipes/lora-mini.toml.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from whet.bench.side import memory as process_bytes
from whet.config.load import load_recipe
from whet.pipeline.pipeline import Pipeline
from whet.preflight import check, forecast, memory
from whet.preflight.forecast import Span, total
from whet.storage.run_log import Silent


class StageCosts(Silent):
    """A display that notes each stage's processor seconds, its measurement included, and its peak
    memory in MiB.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def begin(self, stage: str, kind: str, total: int) -> None:
        self.stage, self.began = stage, time.process_time()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def end(self) -> None:
        self.seconds[self.stage] = time.process_time() - self.began
        peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
        self.peaks[self.stage] = int(peak) / 1024


def run_recipe(word: str) -> None:
    """Runs the recipe in this process, and prints what it cost as JSON."""
    before = process_bytes()
    name, *overrides = word.split(",")
    recipe = load_recipe(Path(name), overrides)
    costs = StageCosts()
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = Pipeline.of(recipe, Path(scratch) / "run", costs)
        began = time.process_time()
        pipeline.run()
        whole = time.process_time() - began
        lines = [
            json.loads(x) for x in (Path(scratch) / "run/metrics.jsonl").read_text().splitlines()
        ]
    steps = {s.name: sum(x["stage"] == s.name for x in lines) for s in recipe.stage}
    peaks = {stage: peak - before for stage, peak in costs.peaks.items()}
    print(json.dumps({"steps": steps, "took": costs.seconds, "whole": whole, "peaks": peaks}))


def compare(word: str) -> None:
    name, *overrides = word.split(",")
    recipe = load_recipe(Path(name), overrides)
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = Pipeline.of(recipe, Path(scratch) / "check")
        model = pipeline.starting_policy(recipe.stage[0])
        load = check.workload(pipeline.context, recipe, check.some_problems(pipeline.context))
        size = memory.parameters(model.config)
        peaks = memory.peak_bytes(recipe, model.config, size, load, "cpu")
    estimates = forecast.forecast(recipe, time.process_time)
    process = subprocess.run(
        [sys.executable, __file__, "--run", word], capture_output=True, text=True, check=True
    )
    run = json.loads(process.stdout.splitlines()[-1])
    estimates = [
        replace(e, steps=Span.of(run["steps"][e.name])) if e.gated else e for e in estimates
    ]
    for e in estimates:
        steps = f" ({run['steps'][e.name]} steps)" if run["steps"][e.name] > 1 else ""
        row(
            f"{recipe.name} | {e.name}{steps}",
            e.seconds,
            run["took"][e.name],
            (peaks.get(e.name, 0) / 2**20, run["peaks"][e.name]),
        )
    row(f"{recipe.name} | **whole**", total([e.seconds for e in estimates]), run["whole"])


def row(name: str, estimate: Span, took: float, peaks: tuple[float, float] = (0, 0)) -> None:
    """Prints a row of the table; `peaks`: MiB, forecast and measured."""
    likely, least, most = estimate.likely, estimate.least, estimate.most
    seconds = f"{likely:.1f} | {least:.1f} to {most:.1f} | {took:.1f} | {likely / took - 1:+.0%}"
    mebibytes = " | | "
    if peaks[0]:
        mebibytes = f"{peaks[0]:.0f} | {peaks[1]:.0f} | {peaks[0] / peaks[1] - 1:+.0%}"
    print(f"| {name} | {seconds} | {mebibytes} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        run_recipe(sys.argv[2])
    else:
        print("| recipe | stage | likely (s) | least to most (s) | took (s) | off by ", end="")
        print("| forecast (MiB) | took (MiB) | off by |\n" + "|---" * 9 + "|")
        for word in sys.argv[1:]:
            compare(word)
