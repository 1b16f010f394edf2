"""What `whet check` foretells of recipes beside what they take: seconds of each stage and of the whole, MiB of the hungriest that trains.

    python benchmarks/forecast.py recipes/lora-mini.toml recipes/ppo-mini.toml,stage.rl.steps=15

One after the other, each side in a process of its own, in seconds of the processor, which busy neighbours stretch less than the clock's: for models
that run on one thread they are the clock's on a free core. A gated stage is compared for the steps that it took.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from whet import check, footprint, forecast, recipes
from whet.bench.side import held
from whet.forecast.estimate import Span, total
from whet.pipeline import Pipeline


class Measured(Pipeline):
    """A run that notes the processor's seconds of each stage, its measurement included."""

    def stage(self, stage: Any) -> None:
        began = time.process_time()
        super().stage(stage)
        self.records[-1]["processor"] = time.process_time() - began


def ran(word: str) -> None:
    """A side of its own: the run, as JSON."""
    before = held()
    name, *given = word.split(",")
    recipe = recipes.load(Path(name), given)
    with tempfile.TemporaryDirectory() as scratch:
        run = Measured.of(recipe, Path(scratch) / "run", None)
        began = time.process_time()
        run.run()
        whole = time.process_time() - began
        lines = [json.loads(x) for x in (Path(scratch) / "run/metrics.jsonl").read_text().splitlines()]
    steps = {s.name: sum(x["stage"] == s.name for x in lines) for s in recipe.stage}
    took = {r["name"]: r["processor"] for r in run.records}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"steps": steps, "took": took, "whole": whole, "memory": peak - before}))


def compared(word: str) -> None:
    name, *given = word.split(",")
    recipe = recipes.load(Path(name), given)
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = Pipeline.of(recipe, Path(scratch) / "check", None)
        model = pipeline.start(recipe.stage[0])
        load = check.load(pipeline.context, recipe, check.looked_at(pipeline.context))
        size = footprint.parameters(model.config)
        needs = footprint.needs(recipe, model.config, size, load, "cpu")
    found = forecast.forecast(recipe, time.process_time)
    told = subprocess.run([sys.executable, __file__, "--run", word], capture_output=True, text=True, check=True)
    run = json.loads(told.stdout.splitlines()[-1])
    found = [replace(e, steps=Span.of(run["steps"][e.name])) if e.gated else e for e in found]
    rows = [(e.name, e.seconds, run["took"][e.name]) for e in found]
    rows.append(("**whole**", total([e.seconds for e in found]), run["whole"]))
    for stage, span, took in rows:
        steps = f" ({run['steps'][stage]} steps)" if run["steps"].get(stage, 0) > 1 else ""
        spread = f"{span.least:.1f} to {span.most:.1f}"
        print(
            f"| {recipe.name} | {stage}{steps} | {span.likely:.1f} | {spread} | {took:.1f} | {span.likely / took - 1:+.0%} |"
        )
    most = max(needs.values()) / 2**20
    print(f"| {recipe.name} | MiB | {most:.0f} | | {run['memory']:.0f} | {most / run['memory'] - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        ran(sys.argv[2])
    else:
        print(
            "| recipe | stage | likely (s) | least to most (s) | took (s) | likely is off by |\n|---|---|---|---|---|---|"
        )
        for word in sys.argv[1:]:
            compared(word)
