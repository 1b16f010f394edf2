"""One stage of a finished run once more, from what the stages before it left in the run's directory."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
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
    pipeline.began -= before["seconds"] - sum(line["seconds"] for line in before["stages"] if line["name"] == name)
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
    with aside(directory, name):
        pipeline.stage(recipe.stage[at])
    pipeline.records.sort(key=lambda line: names.index(line["name"]) if line["name"] in names else -1)
    return pipeline.finish()


def _before(recipe: config.Recipe, directory: Path, at: int) -> dict[str, Any]:
    """The summary of the run that stands there."""
    if not (directory / "recipe.toml").is_file() or not (directory / "summary.json").is_file():
        raise RecipeError(f"{directory} holds no run whose stages could be built upon; run all of it first")
    old = recipes.load(directory / "recipe.toml")
    one, other = ({**r.model_dump(), "stage": [s.model_dump() for s in r.stage[:at]]} for r in (old, recipe))
    changed = [key for key in one if one[key] != other[key] and key not in ("name", "about", "result", "evaluation")]
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


@contextmanager
def aside(directory: Path, name: str) -> Iterator[None]:
    """Within it, what the stage left is out of the way: its model or data, its samples, its lines of metrics.jsonl. Where the block raises, all
    of it comes back."""
    samples = [directory / "samples" / f"{name}{end}" for end in ("", "-probe", "-test")]
    folders = [folder for folder in (directory / name, *samples) if folder.exists()]
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    with TemporaryDirectory(prefix=".before.", dir=directory) as place:
        for i, folder in enumerate(folders):
            folder.rename(Path(place) / str(i))
        _put(path, "".join(x for x in lines if json.loads(x)["stage"] != name))
        done = False
        try:
            yield
            done = True
        finally:
            for i, folder in enumerate([] if done else folders):
                shutil.rmtree(folder, ignore_errors=True)
                (Path(place) / str(i)).rename(folder)
            if not done:
                _put(path, "".join(lines))


def _put(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
