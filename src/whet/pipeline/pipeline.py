"""Runs a recipe's stages into runs/NAME/, and leaves a model and a summary there."""

import hashlib
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, Self

import tomli_w
import torch

from whet import config
from whet.algorithms.table import cells
from whet.chat import Chat
from whet.config.thinking import measured
from whet.engines import engine_for
from whet.errors import RecipeError, Stopped
from whet.evaluation.measure import Measured, gain, measure
from whet.model import lora_files, pretrained
from whet.model.policy import Policy
from whet.pipeline import setup
from whet.pipeline.save import save_stage
from whet.pipeline.validate import validate
from whet.rewards import combined
from whet.rollout.context import Context
from whet.storage import provenance
from whet.storage.atomic import committed, make_directory, write_text
from whet.storage.checkpoint import Checkpoints
from whet.storage.run_log import Display, RunLog, write_json
from whet.tasks import load as load_task


def prepare(directory: Path, overwrite: bool) -> None:
    """Removes an earlier run, so that a new one can begin in its directory.

    Raises RecipeError without `overwrite`, and for a directory that holds no run.
    """
    # The run vanishes by one rename: half of one would pass for somebody's files.
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if not directory.exists():
        return
    if not overwrite:
        raise RecipeError(
            f"{directory} exists; give another name=..., or --overwrite to replace it"
        )
    marks = ("recipe.toml", provenance.FILE, f".{provenance.FILE}.partial")
    if any(directory.iterdir()) and not any((directory / name).exists() for name in marks):
        raise RecipeError(f"{directory} holds no run, so --overwrite will not remove it")
    directory.rename(old)
    shutil.rmtree(old)


def run(
    recipe: config.Recipe,
    directory: Path,
    display: Display | None = None,
    stop: Event | None = None,
) -> dict[str, Any]:
    """Runs all stages of `recipe` into `directory`, and returns the summary.

    Raises WhetError for what the user can mend. Raises Stopped soon after `stop` is set, with all
    on disk that --resume needs.
    """
    return Pipeline.of(recipe, directory, display, stop).run()


@dataclass
class Pipeline:
    """One run: its recipe, its directory, and what its stages have made so far."""

    recipe: config.Recipe
    directory: Path
    context: Context
    origin: dict[str, Any]  # hashes of the recipe, of the files that it names, and of the code
    stop: Event = field(default_factory=Event)  # set: the run ends at the next safe moment
    # Applied to the context of each stage. The dry run and the forecast put their own reward and
    # engine there.
    adapt: Callable[[Context], Context] | None = None
    policy: Policy | None = None  # the newest model
    records: list[dict[str, Any]] = field(default_factory=list)  # the summary's line of each stage
    measured: dict[str, Measured] = field(default_factory=dict)  # by stage
    began: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(
        cls,
        recipe: config.Recipe,
        directory: Path,
        display: Display | None = None,
        stop: Event | None = None,
        adapt: Callable[[Context], Context] | None = None,
    ) -> Self:
        """Validates the recipe, loads its model, and begins the run's directory.

        Raises WhetError, mostly before anything is written.
        """
        task = load_task(recipe.task.name, **recipe.task.options)
        validate(recipe, task)
        reward = setup.build_reward(recipe, recipe.reward, task, directory)
        for stage in recipe.stage:
            if isinstance(stage, config.Draws) and stage.reward:
                setup.build_reward(recipe, stage.reward, task, directory)  # refuses unknown options
        chat, path = setup.load_chat(recipe, task)
        dtype = getattr(torch, recipe.model.dtype)
        policy = None if path is None else pretrained.load(str(path), dtype=dtype)
        make_directory(directory)
        origin = provenance.origin(recipe)
        write_json(directory / provenance.FILE, origin)
        write_text(directory / "recipe.toml", tomli_w.dumps(recipe.model_dump(exclude_none=True)))
        log = RunLog(directory, display)
        for note in (chat.note, getattr(task, "note", "")):
            if note:
                log.warn("start", 0, note)
        load = partial(setup.load_policy, recipe, directory)
        context = Context(task, reward, chat, recipe.ask, log, recipe.seed, engine_for, load)
        pipeline = cls(recipe, directory, context, origin, stop or Event(), adapt)
        if policy is not None:
            pipeline.policy = setup.to_device(policy, recipe.model)
        return pipeline

    def run(self) -> dict[str, Any]:
        """Runs the stages that have no record yet. Returns the summary."""
        if self.policy is not None and self.recipe.model.path is not None and not self.records:
            self.record("start", "model", 0.0, self.policy, self.recipe.evaluation)
        done = {record["name"] for record in self.records}
        for stage in self.recipe.stage:
            if stage.name not in done:
                self.run_stage(stage)
            self.checkpoints(stage.name).clear()
        return self.finish()

    def finish(self) -> dict[str, Any]:
        """Copies the result's model to model/, and returns the summary."""
        result = self.recipe.result or next(reversed(self.recipe.trained), None)
        if result is not None:
            source, final = self.directory / result / "model", self.directory / "model"
            with committed(final) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
                lora_files.rebase(folder, source, final)
        return self.summarize(result)

    def run_stage(self, stage: config.AnyStage) -> None:
        """Runs one stage, saves its model, measures it and records it. Raises Stopped."""
        policy = self.starting_policy(stage)
        began = time.perf_counter()
        log = self.context.log
        log.display.begin(stage.name, stage.kind, getattr(stage, "steps", 0))
        if not isinstance(stage, config.Trained):  # a trained stage rewinds to its checkpoint
            log.rewind(stage.name, 0)
        if isinstance(stage, config.Evaluate):
            self.record(stage.name, stage.kind, 0.0, policy, stage)
        else:
            work = import_module(f"whet.stages.{stage.kind}").run
            figures = work(policy, stage, self.stage_context(stage))
            seconds = time.perf_counter() - began
            evaluation = None
            if isinstance(stage, config.Makes):
                self.policy = policy
                save_stage(policy, self.context.chat, stage, self.recipe, self.directory)
                evaluation = self.recipe.evaluation if stage.evaluate else None
            self.record(stage.name, stage.kind, seconds, policy, evaluation)
            self.records[-1] |= figures or {}
            if isinstance(stage, config.RL):
                row = {"name": stage.algorithm, **cells(stage.row)}
                self.records[-1]["algorithm"] = row
        log.display.end()
        self.summarize(None)
        if self.stop.is_set() and stage is not self.recipe.stage[-1]:
            raise Stopped(f"stopped after stage {stage.name}; --resume goes on from there")

    def checkpoints(self, stage: str) -> Checkpoints:
        """Returns the checkpoints of a stage."""
        spec = self.recipe.save
        folder = self.directory / stage / "checkpoints"
        checkpoints = Checkpoints(folder, spec.every, spec.last, self.stop)
        checkpoints.origin, checkpoints.before = self.origin, self.context.log.sync
        return checkpoints

    def stage_context(self, stage: config.AnyStage) -> Context:
        """Returns the run's context with the stage's own seed, task, checkpoints and reward."""
        context = replace(
            self.context,
            seed=stage_seed(self.recipe.seed, stage.name),
            task=setup.stage_task(self.context.task, stage),
            checkpoints=self.checkpoints(stage.name),
        )
        if isinstance(stage, config.Draws) and stage.reward:
            reward = setup.build_reward(
                self.recipe, stage.reward, self.context.task, self.directory
            )
            context = replace(context, reward=reward)
        return context if self.adapt is None else self.adapt(context)

    def starting_policy(self, stage: config.AnyStage) -> Policy:
        """Returns the model that a stage starts from: the newest, a named one, or a new one."""
        if isinstance(stage, config.Merge):
            return self.context.policy(next(iter(stage.models)))
        shape = stage.shape if isinstance(stage, config.SFT) else None
        if shape is None and stage.start == "previous" and self.policy is not None:
            return self.policy
        if shape is None and stage.start not in ("previous", "new"):
            return self.context.policy(stage.start)
        if self.recipe.model.path is not None:
            raise RecipeError(
                f"stage {stage.name}: a new model needs the task's own alphabet; drop model.path"
            )
        shape = shape or self.recipe.model.shape
        return setup.to_device(
            setup.new_policy(shape, self.context.chat, self.recipe.seed), self.recipe.model
        )

    def record(
        self,
        name: str,
        kind: str,
        seconds: float,
        policy: Policy,
        evaluation: config.Evaluation | None,
    ) -> None:
        """Appends a stage's line of the summary; with an evaluation, measures the model first."""
        line: dict[str, Any] = {"name": name, "kind": kind, "seconds": round(seconds, 3)}
        line |= {"accuracy": None, "low": None, "high": None, "n": None}
        line["parameters"] = sum(p.numel() for p in policy.parameters())
        if evaluation is not None:
            # A stop interrupts the measurement only where no training would be lost by it.
            trained = kind not in ("model", "evaluate")
            progress = None if trained else self.checkpoints(name).raise_if_stopped
            measurement = measure(policy, self.context, evaluation, progress)
            self.measured[name] = measurement
            line |= measurement.figures
            on, off = measurement.groups, measurement.off
            groups = on[:200] if off is None else [*on[:100], *off.groups[:100]]
            self.context.log.samples(
                f"{name}-test", 0, groups, self.context.chat, self.context.task
            )
        self.records.append(line)

    def summarize(self, result: str | None) -> dict[str, Any]:
        """Writes summary.json and returns it; `result`: the stage whose model is the run's."""
        policy = self.policy
        summary: dict[str, Any] = {
            "name": self.recipe.name,
            "task": self.recipe.task.name,
            "seed": self.recipe.seed,
            "result": result,
            "seconds": round(time.perf_counter() - self.began, 2),
            "versions": {
                "whet": metadata.version("whet"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "device": None if policy is None else str(next(policy.parameters()).device),
            "stages": self.records,
            "gain": self.gain(result),
        }
        self.context.log.summary(summary)
        return summary

    def gain(self, result: str | None) -> dict[str, Any] | None:
        """Compares the result with the model that its stage started from.

        Returns None where either was not measured.
        """
        order = self.recipe.trained
        names = {
            r["name"]
            for r in self.records
            if r["accuracy"] is not None and r["kind"] != "reward_model"
        }
        if result is None or result not in names:
            return None
        start = next(s.start for s in self.recipe.stage if s.name == result)
        earlier = [n for n in ["start", *order[: order.index(result)]] if n in names]
        before = start if start in names else next(reversed(earlier), None)
        if before is None:
            return None
        return gain(before, self.measurement(before), result, self.measurement(result))

    def measurement(self, name: str) -> Measured:
        """Returns the measurement of a stage's model.

        One that an earlier process made is made again, with the same random numbers.
        """
        if name not in self.measured:
            source = str(self.recipe.model.path) if name == "start" else name
            self.measured[name] = measure(
                self.context.policy(source), self.context, self.recipe.evaluation
            )
        return self.measured[name]


def stage_seed(seed: int, name: str) -> int:
    """Derives a stage's seed from its name, so that a stage put before it does not change it."""
    return seed * 1_000_003 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")


def evaluate(
    model: str, spec: config.Task, ask: config.Ask, evaluation: config.Evaluation
) -> Measured:
    """Measures one model on a task's test problems, outside any run."""
    path = pretrained.resolve(model)
    task = load_task(spec.name, **spec.options)
    chat = Chat.load(pretrained.tokenizer_directory(path))
    if len(measured(evaluation.thinking, ask.thinking)) > 1:
        chat.demand_switch()
    policy = setup.to_device(pretrained.load(str(path)), config.Model())
    reward = combined([("task", 1.0, {})], task)
    with TemporaryDirectory() as scratch:
        log = RunLog(Path(scratch))
        context = Context(
            task, reward, chat, ask, log, evaluation.seed, engine_for, pretrained.load
        )
        return measure(policy, context, evaluation)
