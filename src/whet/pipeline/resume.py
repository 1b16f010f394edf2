"""Continues a run where it was stopped, or runs one of its stages once more."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
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
# Keys that may differ when a run is resumed, and when one of its stages runs once more.
FREE = ("name", "about", "result", "save")
FREE_BEFORE = ("name", "about", "result", "evaluation")


def resume(
    recipe: config.Recipe,
    directory: Path,
    display: Display | None = None,
    stop: Event | None = None,
) -> dict[str, Any]:
    """Runs what is left of a run, from the last whole checkpoint of the stopped stage.

    On a CPU the result is, bit for bit, that of an uninterrupted run; only times differ.
    Raises RecipeError where there is no run, or where a key has changed that the rest depends on.
    """
    if not (directory / "recipe.toml").is_file():
        raise RecipeError(f"{directory} holds no run to go on with; start it without --resume")
    recover(directory)
    path = directory / "summary.json"
    summary: dict[str, Any] = {"stages": [], "seconds": 0.0}
    if path.is_file():
        summary = json.loads(path.read_text(encoding="utf-8"))
    done = [line["name"] for line in summary["stages"]]
    old = load_recipe(directory / "recipe.toml")
    changed = _changed_keys(old, recipe, FREE) - _longer(old, recipe, done)
    if changed:
        raise RecipeError(
            f"{directory} cannot go on with other {', '.join(sorted(changed))}; "
            "set them back, or start a run of another name"
        )
    origin = _read_origin(directory)
    pipeline = Pipeline.of(recipe, directory, display, stop)
    if files := provenance.changed(origin, pipeline.origin):
        write_json(directory / provenance.FILE, origin)
        raise RecipeError(
            f"{directory} cannot go on: {', '.join(files)} changed since it began; "
            "put back what was there, or start anew"
        )
    _restore(pipeline, summary, [stage for stage in recipe.stage if stage.name in done])
    if origin["code"] != pipeline.origin["code"]:
        pipeline.context.log.warn(
            "start",
            0,
            "whet's code has changed since the run began: "
            "what follows may differ from what it would have been",
        )
    return pipeline.run()


def rerun(
    recipe: config.Recipe, directory: Path, name: str, display: Display | None = None
) -> dict[str, Any]:
    """Runs the stage `name` alone, and replaces its model, samples, metrics and summary line.

    Raises RecipeError where there is no such stage or run, or where a key has changed that the
    stages before it read.
    """
    names = [stage.name for stage in recipe.stage]
    if name not in names:
        raise RecipeError(f"--only {name}: the recipe has no such stage{did_you_mean(name, names)}")
    at = names.index(name)
    recover(directory)
    summary = _without(_summary_to_build_on(recipe, directory, at), name)
    pipeline = Pipeline.of(recipe, directory, display)
    _restore(pipeline, summary, recipe.stage[:at])
    done = {line["name"] for line in pipeline.records}
    if later := [n for n in names[at + 1 :] if n in done]:
        pipeline.context.log.warn(
            name, 0, f"ran alone: {', '.join(later)} still stand on what it was before"
        )
    with _replacing(directory, name):
        pipeline.run_stage(recipe.stage[at])
    order = {n: i for i, n in enumerate(names)}
    pipeline.records.sort(key=lambda line: order.get(line["name"], -1))
    return pipeline.finish()


def _read_origin(directory: Path) -> dict[str, Any]:
    """Reads the hashes of what the run was made of. Raises RecipeError where they are damaged."""
    try:
        origin = json.loads((directory / provenance.FILE).read_text(encoding="utf-8"))
        return {"files": dict(origin["files"]), "code": str(origin["code"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise RecipeError(
            f"{directory / provenance.FILE} is missing or damaged, and it says what the run was made of; "
            "start anew"
        ) from None


def _changed_keys(old: config.Recipe, new: config.Recipe, free: Collection[str]) -> set[str]:
    """Returns the keys whose values differ, as "stage.rl.steps"; `free` keys may differ."""
    before, after = (_flat(recipe.model_dump(exclude=set(free))) for recipe in (old, new))
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def _longer(old: config.Recipe, new: config.Recipe, done: Sequence[str]) -> set[str]:
    """Returns the keys of steps that were raised where that is harmless.

    It is in a stage that is not done, and whose learning rate is constant.
    """
    return {
        f"stage.{s.name}.steps"
        for s, was in zip(new.stage, old.stage, strict=False)
        if isinstance(s, config.Trained)
        and s.name not in done
        and s.optimizer.schedule == "constant"
        and getattr(s, "steps", 0) > getattr(was, "steps", 0)
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens tables into {"stage.rl.steps": 40, ...}; tables of a list by name or number."""
    if isinstance(value, Mapping):
        items: Mapping[str, Any] = value
    elif isinstance(value, list) and value and all(isinstance(x, Mapping) for x in value):
        items = {str(x.get("name")): x for x in value}
        if len(items) < len(value):  # two of one name
            items = {str(i): x for i, x in enumerate(value)}
    else:
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, inner in items.items():
        leaves |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return leaves


def _restore(
    pipeline: Pipeline, summary: Mapping[str, Any], stages: Sequence[config.AnyStage]
) -> None:
    """Gives a new pipeline the summary of its run, and the newest model of finished stages."""
    pipeline.records = list(summary["stages"])
    pipeline.began -= summary["seconds"]
    if "warnings" in summary:
        pipeline.context.log.warnings[:] = summary["warnings"]
    for stage in stages:
        if isinstance(stage, config.Makes):
            pipeline.policy = pipeline.context.policy(stage.name)


def _summary_to_build_on(recipe: config.Recipe, directory: Path, at: int) -> dict[str, Any]:
    """Reads the summary of a run that stage number `at` can be run on.

    Raises RecipeError where the stages before it have not run, or ran with other keys.
    """
    if not (directory / "recipe.toml").is_file() or not (directory / "summary.json").is_file():
        raise RecipeError(
            f"{directory} holds no run whose stages could be built upon; run all of it first"
        )
    old = load_recipe(directory / "recipe.toml")
    before, after = (r.model_copy(update={"stage": r.stage[:at]}) for r in (old, recipe))
    if changed := _changed_keys(before, after, FREE_BEFORE):
        raise RecipeError(
            f"{', '.join(sorted(changed))} of the stages before it differ "
            f"from those of {directory}; run all of it"
        )
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    done = {line["name"] for line in summary["stages"]}
    missing = [stage.name for stage in recipe.stage[:at] if stage.name not in done]
    if missing:
        raise RecipeError(
            f"{directory}: stage {missing[0]} has not run, and it comes before; run all of it"
        )
    return summary


def _without(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the summary as if the stage `name` had not run."""
    stages = [line for line in summary["stages"] if line["name"] != name]
    seconds = sum(line["seconds"] for line in summary["stages"] if line["name"] == name)
    warnings = [w for w in summary.get("warnings", []) if w["stage"] != name]
    return {"stages": stages, "seconds": summary["seconds"] - seconds, "warnings": warnings}


@contextmanager
def _replacing(directory: Path, name: str) -> Iterator[None]:
    """Moves a stage's model, data and samples out of the way while the block runs.

    They are deleted where the block succeeds, and restored where it raises. Where the process is
    killed, the next --resume or --only restores them (`recover`). The stage's lines of
    metrics.jsonl are copied, too: a stage deletes them when it begins (`RunLog.rewind`).
    """
    backup = directory / f".before.{name}"
    with committed(backup) as partial:  # one rename: half a copy must never be restored
        for file in FILES:
            if (directory / file).is_file():
                shutil.copy2(directory / file, partial / file)
    for folder in (name, *(f"samples/{name}{end}" for end in ("", "-probe", "-test"))):
        if (directory / folder).exists():
            (directory / folder).rename(backup / folder.replace("/", "@"))
    try:
        yield
        backup.rename(directory / f".after.{name}")
    finally:
        recover(directory)


def recover(directory: Path) -> None:
    """Restores what `_replacing` moved away, and deletes what a killed process left half done."""
    for backup in directory.glob(".before.*"):
        # The log and the summary come last: they describe the folders.
        for saved in sorted(backup.iterdir(), key=lambda p: p.name in FILES):
            target = directory / saved.name.replace("@", "/")
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            saved.replace(target)
        backup.rmdir()
    for pattern in (".after.*", ".*.partial", ".*.old", "*/.*.partial", "*/.*.old"):
        for path in directory.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
