"""Compares the forecast of `whet check` with a run: seconds of each stage, MiB of each that trains.

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
from typing import Any

from whet.bench.side import memory as memory_used
from whet.config.load import load_recipe
from whet.pipeline.pipeline import Pipeline
from whet.preflight import check, forecast, memory
from whet.preflight.forecast.estimate import Span, total


class Measured(Pipeline):
    """A run that notes the processor's seconds of each stage, its measurement included, and the
    most memory that it held meanwhile.
    """

    def stage(self, stage: Any) -> None:
        began = time.process_time()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        super().stage(stage)
        peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
        self.records[-1] |= {"processor": time.process_time() - began, "peak": int(peak) / 1024}


def ran(word: str) -> None:
    """A side of its own: the run, as JSON."""
    before = memory_used()
    name, *overrides = word.split(",")
    recipe = load_recipe(Path(name), overrides)
    with tempfile.TemporaryDirectory() as scratch:
        run = Measured.of(recipe, Path(scratch) / "run", None)
        began = time.process_time()
        run.run()
        whole = time.process_time() - began
        lines = [
            json.loads(x) for x in (Path(scratch) / "run/metrics.jsonl").read_text().splitlines()
        ]
    steps = {s.name: sum(x["stage"] == s.name for x in lines) for s in recipe.stage}
    took = {r["name"]: r["processor"] for r in run.records}
    peaks = {r["name"]: r["peak"] - before for r in run.records}
    print(json.dumps({"steps": steps, "took": took, "whole": whole, "peaks": peaks}))


def compared(word: str) -> None:
    name, *overrides = word.split(",")
    recipe = load_recipe(Path(name), overrides)
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = Pipeline.of(recipe, Path(scratch) / "check", None)
        model = pipeline.start(recipe.stage[0])
        load = check.load(pipeline.context, recipe, check.looked_at(pipeline.context))
        size = memory.parameters(model.config)
        needs = memory.needs(recipe, model.config, size, load, "cpu")
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
            (needs.get(e.name, 0) / 2**20, run["peaks"][e.name]),
        )
    row(f"{recipe.name} | **whole**", total([e.seconds for e in estimates]), run["whole"])


def row(name: str, expected: Span, took: float, memory: tuple[float, float] = (0, 0)) -> None:
    seconds = (
        f"{expected.likely:.1f} | {expected.least:.1f} to {expected.most:.1f} | {took:.1f} | "
        f"{expected.likely / took - 1:+.0%}"
    )
    mebibytes = (
        f"{memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1] - 1:+.0%}"
        if memory[0]
        else " | | "
    )
    print(f"| {name} | {seconds} | {mebibytes} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        ran(sys.argv[2])
    else:
        print(
            "| recipe | stage | likely (s) | least to most (s) | took (s) | off by | foretold (MiB) "
            "| took (MiB) | off by |\n|---|---|---|---|---|---|---|---|---|"
        )
        for word in sys.argv[1:]:
            compared(word)
