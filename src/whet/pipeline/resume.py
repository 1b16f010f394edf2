"""A run that is there: gone on with where it was stopped, or one of its stages run once more."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from whet import config
from whet.config.load import load_recipe
from whet.errors import RecipeError, did_you_mean
from whet.pipeline.pipeline import Pipeline
from whet.storage import provenance
from whet.storage.atomic import committed
from whet.storage.run_log import Display, write_json

FILES = ("metrics.jsonl", "summary.json")
FREE = ("name", "about", "result", "save")  # what a run may go on with otherwise


def resume(
    recipe: config.Recipe,
    directory: Path,
    display: Display | None = None,
    stop: Event | None = None,
) -> dict[str, Any]:
    """Goes on with a run: its finished stages stay, the one that was stopped goes on from its last
    whole checkpoint. On a CPU what is left is, bit for bit, what it would have been without the
    stop; only times differ.

    Raises RecipeError where there is no run, or where keys have changed that what is left depends
    on.
    """
    if not (directory / "recipe.toml").is_file():
        raise RecipeError(f"{directory} holds no run to go on with; start it without --resume")
    tidy(directory)
    path = directory / "summary.json"
    held: dict[str, Any] = {"stages": [], "seconds": 0.0}
    summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else held
    done = [line["name"] for line in summary["stages"]]
    changed = changes(load_recipe(directory / "recipe.toml"), recipe, done)
    if changed:
        raise RecipeError(
            f"{directory} cannot go on with other {', '.join(changed)}; set them back, or start a run of another name"
        )
    was = _origin(directory)
    pipeline = Pipeline.of(recipe, directory, display)
    if files := provenance.changed(was, pipeline.made_of):
        write_json(directory / provenance.FILE, was)
        raise RecipeError(
            f"{directory} cannot go on: {', '.join(files)} changed since it began; put back what was there, or start anew"
        )
    pipeline.stop = stop or pipeline.stop
    pipeline.records = list(summary["stages"])
    pipeline.began -= summary["seconds"]
    if "warnings" in summary:
        pipeline.context.log.warnings[:] = summary["warnings"]
    if was["code"] != pipeline.made_of["code"]:
        text = "whet's code has changed since the run began: what follows may differ from what it would have been"
        pipeline.context.log.warn("start", 0, text)
    recall(pipeline, [stage for stage in recipe.stage if stage.name in done])
    return pipeline.run()


def _origin(directory: Path) -> dict[str, Any]:
    """Raises RecipeError where the run does not say what it was made of."""
    try:
        held = json.loads((directory / provenance.FILE).read_text(encoding="utf-8"))
        return {"files": dict(held["files"]), "code": str(held["code"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise RecipeError(
            f"{directory / provenance.FILE} is missing or damaged, and it says what the run was made of; start anew"
        ) from None


def changes(old: config.Recipe, new: config.Recipe, done: Sequence[str]) -> list[str]:
    """The keys that differ and matter. More steps do not, for a stage that is not done and whose
    learning rate is constant.
    """
    one, other = (_flat(r.model_dump(exclude=set(FREE))) for r in (old, new))
    found = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
    longer = {
        f"stage.{s.name}.steps"
        for s, was in zip(new.stage, old.stage, strict=False)
        if isinstance(s, config.Trained)
        and s.name not in done
        and s.optimizer.schedule == "constant"
        and getattr(s, "steps", 0) > getattr(was, "steps", 0)
    }
    return [key for key in found if key not in longer]


def _flat(held: Any, prefix: str = "") -> dict[str, Any]:
    """{"stage.rl.steps": 40, ...}; stages by their names."""
    if isinstance(held, Mapping):
        return {
            k: v
            for key, value in held.items()
            for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()
        }
    if isinstance(held, list) and held and all(isinstance(x, Mapping) for x in held):
        return {
            k: v
            for i, x in enumerate(held)
            for k, v in _flat(x, f"{prefix}.{x.get('name', i)}").items()
        }
    return {prefix: held}


def recall(pipeline: Pipeline, stages: Sequence[config.AnyStage]) -> None:
    """Gives a pipeline the newest model of the stages that have run."""
    for stage in stages:
        if isinstance(stage, config.Makes):
            pipeline.policy = pipeline.context.policy(stage.name)


def rerun(
    recipe: config.Recipe, directory: Path, name: str, display: Display | None = None
) -> dict[str, Any]:
    """Runs the stage `name` alone and puts its model, samples, metrics and line of the summary in
    place of the old ones.

    Raises RecipeError where there is no such stage or run, or where a key that the stages before it
    read has changed.
    """
    names = [stage.name for stage in recipe.stage]
    if name not in names:
        raise RecipeError(f"--only {name}: the recipe has no such stage{did_you_mean(name, names)}")
    at = names.index(name)
    tidy(directory)
    before = _before(recipe, directory, at)
    pipeline = Pipeline.of(recipe, directory, display)
    pipeline.records = [line for line in before["stages"] if line["name"] != name]
    pipeline.began -= before["seconds"] - sum(
        line["seconds"] for line in before["stages"] if line["name"] == name
    )
    pipeline.context.log.warnings[:] = [w for w in before.get("warnings", []) if w["stage"] != name]
    recall(pipeline, recipe.stage[:at])
    later = [n for n in names[at + 1 :] if any(line["name"] == n for line in pipeline.records)]
    if later:
        pipeline.context.log.warn(
            name, 0, f"ran alone: {', '.join(later)} still stand on what it was before"
        )
    with aside(directory, name):
        pipeline.stage(recipe.stage[at])
    pipeline.records.sort(
        key=lambda line: names.index(line["name"]) if line["name"] in names else -1
    )
    return pipeline.finish()


def _before(recipe: config.Recipe, directory: Path, at: int) -> dict[str, Any]:
    """The summary of the run that stands there."""
    if not (directory / "recipe.toml").is_file() or not (directory / "summary.json").is_file():
        raise RecipeError(
            f"{directory} holds no run whose stages could be built upon; run all of it first"
        )
    old = load_recipe(directory / "recipe.toml")
    one, other = (
        {**r.model_dump(), "stage": [s.model_dump() for s in r.stage[:at]]} for r in (old, recipe)
    )
    changed = [
        key
        for key in one
        if one[key] != other[key] and key not in ("name", "about", "result", "evaluation")
    ]
    if changed:
        raise RecipeError(
            f"{', '.join(changed)} of the stages before it differ from those of {directory}; run all of it"
        )
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    done = {line["name"] for line in summary["stages"]}
    missing = [stage.name for stage in recipe.stage[:at] if stage.name not in done]
    if missing:
        raise RecipeError(
            f"{directory}: stage {missing[0]} has not run, and it comes before; run all of it"
        )
    return summary


@contextmanager
def aside(directory: Path, name: str) -> Iterator[None]:
    """Within it, what the stage left is out of the way: its model or data and its samples; its
    lines of metrics.jsonl go when it begins (`RunLog.rewind`). Where the block does not end well
    all of it comes back; where the process is killed, with the next `--resume` or `--only`.
    """
    place = directory / f".before.{name}"
    with committed(place) as made:  # a copy that is cut short must never come back
        for file in FILES:
            if (directory / file).is_file():
                shutil.copy2(directory / file, made / file)
    for folder in (name, *(f"samples/{name}{end}" for end in ("", "-probe", "-test"))):
        if (directory / folder).exists():
            (directory / folder).rename(place / folder.replace("/", "@"))
    done = False
    try:
        yield
        done = True
    finally:
        if done:
            place = place.rename(directory / f".after.{name}")
        tidy(directory)


def tidy(directory: Path) -> None:
    """Takes away what a killed process has left half-done, and puts back what it had put aside."""
    for place in directory.glob(".before.*"):
        for held in sorted(
            place.iterdir(), key=lambda p: p.name in FILES
        ):  # what they tell of comes first
            target = directory / held.name.replace("@", "/")
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            held.replace(target)
        place.rmdir()
    for pattern in (".after.*", ".*.partial", ".*.old", "*/.*.partial", "*/.*.old"):
        for held in directory.glob(pattern):
            if held.is_dir():
                shutil.rmtree(held, ignore_errors=True)
            else:
                held.unlink(missing_ok=True)
