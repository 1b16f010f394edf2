"""One stage of a finished run once more, from what the stages before it left in the run's directory."""

import json
import shutil
from pathlib import Path
from typing import Any

from whet import config, rankings, recipes
from whet.errors import RecipeError, did_you_mean
from whet.pipeline import Pipeline
from whet.runlog import Display
from whet.stages import reject


def rerun(recipe: config.Recipe, directory: Path, name: str, display: Display | None = None) -> dict[str, Any]:
    """Runs the stage `name` alone and puts its model, samples, metrics and line of the summary in place of the old ones.

    Raises RecipeError where there is no such stage or run, or where a key that the stages before it read has changed.
    """
    names = [stage.name for stage in recipe.stage]
    if name not in names:
        raise RecipeError(f"--only {name}: the recipe has no such stage{did_you_mean(name, names)}")
    at = names.index(name)
    before = _before(recipe, directory, at)
    pipeline = Pipeline.of(recipe, directory, display)
    pipeline.records = [line for line in before["stages"] if line["name"] != name]
    for stage in recipe.stage[:at]:
        if isinstance(stage, config.Makes):
            pipeline.policy = pipeline.context.policy(stage.name)
        if isinstance(stage, config.Reject):
            pipeline.context.data[stage.name] = reject.read(directory / stage.name / "data.jsonl")
        if isinstance(stage, config.Rank):
            pipeline.context.rankings[stage.name] = rankings.read(str(directory / stage.name / "rankings.jsonl"))
    later = [n for n in names[at + 1 :] if any(line["name"] == n for line in pipeline.records)]
    if later:
        pipeline.context.log.warn(name, 0, f"ran alone: {', '.join(later)} still stand on what it was before")
    clear(directory, name)
    pipeline.stage(recipe.stage[at])
    pipeline.records.sort(key=lambda line: names.index(line["name"]) if line["name"] in names else -1)
    return pipeline.finish()


def _before(recipe: config.Recipe, directory: Path, at: int) -> dict[str, Any]:
    """The summary of the run that stands there."""
    if not (directory / "recipe.toml").is_file() or not (directory / "summary.json").is_file():
        raise RecipeError(f"{directory} holds no run whose stages could be built upon; run all of it first")
    old = recipes.load(directory / "recipe.toml")
    one, other = ({**r.model_dump(), "stage": [s.model_dump() for s in r.stage[:at]]} for r in (old, recipe))
    changed = [key for key in one if one[key] != other[key] and key not in ("about", "result", "evaluation")]
    if changed:
        raise RecipeError(
            f"{', '.join(changed)} of the stages before it differ from those of {directory}; run all of it"
        )
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    done = {line["name"] for line in summary["stages"]}
    missing = [stage.name for stage in recipe.stage[:at] if stage.name not in done]
    if missing:
        raise RecipeError(f"{directory}: stage {missing[0]} has not run, and it comes before; run all of it")
    return summary


def clear(directory: Path, name: str) -> None:
    """Removes what the stage left: its model or data, its samples, its lines of metrics.jsonl."""
    for folder in (directory / name, *(directory / "samples" / f"{name}{end}" for end in ("", "-probe", "-test"))):
        if folder.exists():
            shutil.rmtree(folder)
    path = directory / "metrics.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        partial = path.with_name(".metrics.jsonl.partial")
        partial.write_text("".join(x for x in lines if json.loads(x)["stage"] != name), encoding="utf-8")
        partial.replace(path)
