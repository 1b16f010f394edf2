"""Runs that are stopped, killed or damaged, and gone on with: what is left is what an undisturbed
run leaves.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

from whet import config
from whet.cli.main import main
from whet.config.load import load_recipe
from whet.errors import ModelError, Stopped
from whet.pipeline import pipeline, resume
from whet.rollout.curriculum import Prioritised
from whet.storage.checkpoint import TENSORS, Checkpoints, State, read
from whet.storage.run_log import RunLog, Silent
from whet.training.learner import Learner
from whet.types import Problem

from .faults.crash import RECIPE, killed, left, started
from .helpers.tiny_world import world


class Until(Silent):
    """Sets the event when a stage has done so many steps."""

    def __init__(self, stop: Event, stage: str, step: int) -> None:
        self.stop, self.stage, self.at, self.now = stop, stage, step, ""

    def begin(self, stage, kind, total):
        self.now = stage

    def step(self, done, values):
        if (self.now, done) == (self.stage, self.at):
            self.stop.set()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "crash.toml"
    path.write_text(RECIPE)
    return load_recipe(path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, recipe):
    folder = tmp_path_factory.mktemp("whole") / "crash"
    pipeline.run(recipe, folder)
    return left(folder)


def stopped(recipe, folder: Path, stage: str, step: int, how=pipeline.run) -> str:
    stop = Event()
    with pytest.raises(Stopped) as error:
        how(recipe, folder, Until(stop, stage, step), stop)
    return str(error.value)


@pytest.mark.parametrize(
    ("stage", "step"), [("base", 4), ("rm", 2), ("dpo", 3), ("ppo", 1), ("kimi", 4)]
)
def test_a_run_that_was_asked_to_stop_goes_on_as_if_it_had_not(
    tmp_path, recipe, undisturbed, stage, step
):
    folder = tmp_path / "crash"
    assert (
        f"step {step} of" in (message := stopped(recipe, folder, stage, step))
        and stage in message
        and "--resume" in message
    )
    resume.resume(recipe, folder)
    assert left(folder) == undisturbed


def test_it_may_be_stopped_again_and_again(tmp_path, recipe, undisturbed):
    folder = tmp_path / "crash"
    stopped(recipe, folder, "base", 38)
    for stage, step in (("base", 39), ("ppo", 2), ("ppo", 4), ("kimi", 1)):
        stopped(recipe, folder, stage, step, resume.resume)
    resume.resume(recipe, folder)
    assert left(folder) == undisturbed
    resume.resume(recipe, folder)  # done: nothing is left to do
    assert left(folder) == undisturbed


def test_killed_at_a_few_moments_it_is_the_same(tmp_path, undisturbed):
    """The short form of `make crash`."""
    for i, deaths in enumerate([[("call", 200.0), ("call", 60.0)], [("second", 3.5)]]):
        folder = tmp_path / str(i)
        folder.mkdir()
        killed(folder, deaths)
        assert left(folder / "crash") == undisturbed


@pytest.mark.parametrize("at", [40, 260, 420])
def test_a_disk_that_is_full_ends_the_run_in_one_line_and_loses_nothing(tmp_path, undisturbed, at):
    """`make full-disk` fills real ones."""
    (tmp_path / "crash.toml").write_text(RECIPE)
    process = started(tmp_path, at=at, full=True)
    message = (
        process.communicate(timeout=120)[1].replace("calls", "\ncalls").partition("\ncalls")[0]
    )
    assert (
        process.returncode == 2
        and "No space left on device" in message
        and message.strip().count("\n") == 0
    ), message
    resume.resume(load_recipe(tmp_path / "crash.toml"), tmp_path / "crash")
    assert left(tmp_path / "crash") == undisturbed


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, recipe, undisturbed):
    folder = tmp_path / "crash"
    stopped(recipe, folder, "base", 20)  # leaves those of step 18 and 20
    newest = folder / "base" / "checkpoints" / "00000020" / TENSORS
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    resume.resume(recipe, folder)
    files = left(folder)
    assert {k: v for k, v in files.items() if k != "summary.json"} == {
        k: v for k, v in undisturbed.items() if k != "summary.json"
    }
    (warning,) = (
        w
        for w in files["summary.json"]["warnings"]
        if w not in undisturbed["summary.json"]["warnings"]
    )
    assert (
        warning["text"]
        == "the checkpoint of step 20 was passed over: state.safetensors is not as it was written"
    )


def test_a_checkpoint_that_is_newer_than_the_log_is_not_gone_on_from(tmp_path, recipe, undisturbed):
    """After a power cut the log may have lost lines that a synced checkpoint has seen."""
    folder = tmp_path / "crash"
    stopped(recipe, folder, "base", 20)
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:19]))
    resume.resume(recipe, folder)
    files = left(folder)
    assert files["metrics.jsonl"] == undisturbed["metrics.jsonl"]
    assert {k: v for k, v in files.items() if k != "summary.json"} == {
        k: v for k, v in undisturbed.items() if k != "summary.json"
    }
    assert any("the log ends with step 19" in w["text"] for w in files["summary.json"]["warnings"])


def test_a_learner_comes_back_to_the_bit_and_not_into_another_model(tmp_path):
    model, _ = world(tmp_path)
    settings = config.Optimizer(kind="muon", lr=1e-2, lr_rest=1e-3, schedule="cosine", warmup=2)
    learner = Learner(model, settings, 9)

    def step() -> list[torch.Tensor]:
        for p in learner.parameters:
            p.grad = torch.sin(p.detach() * 50)
        for optimizer in learner.optimizers:
            optimizer.step()
        learner.done += 1
        return [p.detach().clone() for p in learner.parameters]

    step()
    saves = Checkpoints(tmp_path / "checkpoints")
    saves.write(1, {"policy": learner})
    after = step()
    tensors, data = read(saves.folder / "00000001", 1)
    learner.restore(
        State({k.removeprefix("policy/"): t for k, t in tensors.items()}, data["policy"])
    )
    assert learner.done == 1 and all(torch.equal(a, b) for a, b in zip(step(), after, strict=True))
    other = Learner(torch.nn.Linear(3, 2), config.Optimizer(), 9)
    with pytest.raises(ModelError, match="not of this model"):
        other.restore(
            State({k.removeprefix("policy/"): t for k, t in tensors.items()}, data["policy"])
        )


def test_priorities_and_their_random_numbers_come_back():
    problems = [Problem(str(i), ({"role": "user", "content": str(i)},)) for i in range(20)]
    one, two = (Prioritised(iter(problems), 12, seed) for seed in (3, 4))
    one.draw(5)
    one.success["3"] = 1.0
    two.restore(State(data=json.loads(json.dumps(one.state().data))))
    assert [[p.id for p in c.draw(6)] for c in (one, one)] == [
        [p.id for p in c.draw(6)] for c in (two, two)
    ]
    assert np.isclose(two.success["3"], 1.0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=2", "stage.ppo.optimizer.lr=1e-4"], "other seed, stage.ppo.optimizer.lr;"),
        (["stage.base.steps=41"], "other stage.base.steps;"),
        (["stage.ppo.steps=6"], "other stage.ppo.steps;"),
        (["--overwrite"], "drop --overwrite"),
        (["--only", "ppo"], "drop --only"),
        (["name=elsewhere"], "holds no run to go on with"),
    ],
)
def test_what_may_not_change_is_refused_in_one_line(tmp_path, recipe, capsys, words, says):
    stopped(recipe, tmp_path / "crash", "base", 2)
    (tmp_path / "r.toml").write_text(RECIPE)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert main(["run", str(tmp_path / "r.toml"), "--runs", str(tmp_path), "--resume", *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_more_steps_at_a_constant_rate_are_the_longer_run(tmp_path, recipe):
    longer = recipe.model_copy(
        update={"stage": [*recipe.stage[:-1], recipe.stage[-1].model_copy(update={"steps": 7})]}
    )
    pipeline.run(longer, tmp_path / "whole")
    stopped(recipe, tmp_path / "crash", "kimi", 4)
    resume.resume(longer, tmp_path / "crash")
    assert left(tmp_path / "crash") == left(tmp_path / "whole") | {
        "recipe.toml": (tmp_path / "crash/recipe.toml").read_bytes()
    }


def test_ctrl_c_keeps_the_step_and_a_second_one_leaves_at_once(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE.replace("steps = 40", "steps = 4000"))
    command = [
        sys.executable,
        "-m",
        "whet.cli.main",
        "run",
        str(tmp_path / "r.toml"),
        "--runs",
        str(tmp_path),
    ]
    for twice in (False, True):
        process = subprocess.Popen(
            [*command, *(["--resume"] if twice else [])],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        log = tmp_path / "crash" / "metrics.jsonl"
        before = len(log.read_text().splitlines()) if log.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (
            not log.exists() or len(log.read_text().splitlines()) < before + 5
        ):
            time.sleep(0.02)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM if twice else signal.SIGINT)
        if twice:
            process.send_signal(signal.SIGINT)
        message = process.communicate(timeout=30)[1]
        assert process.returncode == 130 and time.monotonic() - asked < 5, message
        if not twice:
            assert (
                "stopped after step" in message
                and "--resume goes on from there" in message
                and "Traceback" not in message
            )
            assert len(list((tmp_path / "crash" / "base" / "checkpoints").iterdir())) == 2


def test_half_a_line_of_the_log_is_forgotten_and_written_again(tmp_path):
    log = RunLog(tmp_path)
    lines = [
        json.dumps({"stage": s, "step": i}) + "\n"
        for s, i in (("a", 1), ("b", 1), ("b", 2), ("b", 3))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"stage": "b", "st')
    assert log.logged("b") == 3 and log.logged("a") == 1 and log.logged("c") == 0
    log.rewind("b", 1)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:2])
