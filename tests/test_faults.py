"""Faults at single places of a run: power cuts, system calls that kill it or find the disk full,
and states that a kill can leave a run's directory in.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import get_args

import pytest

from whet import config
from whet.config.load import load_recipe
from whet.errors import RecipeError, Stopped
from whet.pipeline import pipeline, resume
from whet.storage.run_log import Silent

from .faults import power
from .faults.crash import left
from .test_resume import stopped

TESTS = Path(__file__).parent
RECIPE = TESTS / "data" / "every_stage.toml"


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(RECIPE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, recipe):
    folder = tmp_path_factory.mktemp("whole") / "crash"
    pipeline.run(recipe, folder)
    return left(folder)


def test_the_recipe_that_meets_them_has_every_kind_of_stage(recipe):
    kinds = {
        get_args(k.model_fields["kind"].annotation)[0]
        for k in get_args(get_args(config.AnyStage)[0])
    }
    assert {s.kind for s in recipe.stage} == kinds


def test_what_a_power_cut_leaves_goes_on_to_the_same_files(tmp_path, recipe):
    cuts, wrong = power.tried(recipe, tmp_path, left, every=19)
    assert cuts > 20 and wrong == []


def test_where_a_checkpoint_is_committed_the_log_and_the_samples_of_its_steps_are_on_disk(
    tmp_path, recipe
):
    """Else a power cut could leave steps that are neither in the log nor taken again."""
    seen = list[int]()

    def before(disk: power.Disk) -> None:
        folder = tmp_path / "crash"
        for step in (p.name for p in folder.glob("kimi/checkpoints/*") if p.name.isdigit()):
            files = [folder / "metrics.jsonl", *(folder / "samples" / "kimi").glob("*.jsonl")]
            files = [p for p in files if p.name == "metrics.jsonl" or int(p.stem) <= int(step)]
            contents = {p: disk.contents.get(os.stat(p).st_ino, b"") for p in files}
            assert f'"kimi", "kind": "rl", "step": {int(step)},'.encode() in contents[files[0]]
            assert all(p.read_bytes() == contents[p] for p in files[1:]) and len(files) == 1 + int(
                step
            )
            assert all(p.name in disk.names[os.stat(p.parent).st_ino] for p in files)
            seen.append(int(step))

    with power.noted(before):
        pipeline.run(recipe, tmp_path / "crash")
    assert {1, 2} <= set(seen)


def test_all_that_a_finished_run_has_left_outlasts_a_power_cut(tmp_path, recipe, undisturbed):
    disks = list[power.Disk]()
    with power.noted(disks.append):
        pipeline.run(recipe, tmp_path / "crash")
        disks[0].left(tmp_path / "crash", tmp_path / "cut", lost=True)
    for stage in recipe.stage:  # that they are gone may be lost
        shutil.rmtree(tmp_path / "cut" / stage.name / "checkpoints", ignore_errors=True)
    assert left(tmp_path / "cut") == undisturbed


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("fault", ["killed", "refused"])
def test_system_calls_that_kill_or_find_the_disk_full(fault):
    """The short form of the sweeps of `make crash` and `make full-disk`, in a process of its own,
    for it forks.
    """
    command = [sys.executable, TESTS / "faults" / "sweep.py", fault, "5"]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == 0
        and f"{fault}: 5 of " in done.stdout
        and ", 0 not reached" in done.stdout
    ), done


def test_a_run_whose_recipe_was_not_yet_written_may_be_replaced(tmp_path, recipe):
    for name in (".origin.json.partial", "origin.json"):
        (tmp_path / "crash").mkdir()
        (tmp_path / "crash" / name).write_text("{")
        with pytest.raises(RecipeError, match="holds no run to go on with"):
            resume.resume(recipe, tmp_path / "crash")
        pipeline.prepare(tmp_path / "crash", overwrite=True)
        assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_being_replaced_is_never_taken_for_somebodys_files(
    tmp_path, recipe, monkeypatch
):
    """Killed while the old run is removed, the place is free at once."""
    stopped(recipe, tmp_path / "crash", "base", 1)

    def dies(path: Path) -> None:
        (path / "recipe.toml").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(
        shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else dies(path)
    )
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(tmp_path / "crash", overwrite=True)
    monkeypatch.undo()
    pipeline.prepare(tmp_path / "crash", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_beside_a_run_is_there_whole_while_it_is_written_again(
    tmp_path, recipe, undisturbed, monkeypatch
):
    """Going on writes it anew; a kill right then must not cost the run."""
    stopped(recipe, tmp_path / "crash", "ppo", 1)
    before = (tmp_path / "crash" / "recipe.toml").read_text()
    opened = Path.open

    def empties(self: Path, mode: str = "r", *rest, **named):
        file = opened(self, mode, *rest, **named)
        if "w" in mode and "recipe.toml" in self.name:
            raise KeyboardInterrupt
        return file

    monkeypatch.setattr(Path, "open", empties)
    with pytest.raises(KeyboardInterrupt):
        resume.resume(recipe, tmp_path / "crash")
    monkeypatch.undo()
    assert (tmp_path / "crash" / "recipe.toml").read_text() == before
    resume.resume(recipe, tmp_path / "crash")
    assert left(tmp_path / "crash") == undisturbed


def test_a_stage_that_kept_nothing_is_gone_on_from(tmp_path, recipe, undisturbed):
    stopped(recipe, tmp_path / "crash", "rm", 1)
    assert (tmp_path / "crash" / "kept" / "data.jsonl").read_bytes() == b""
    resume.resume(recipe, tmp_path / "crash")
    assert left(tmp_path / "crash") == undisturbed


def test_a_copy_that_is_cut_short_never_comes_back(tmp_path, recipe, undisturbed, monkeypatch):
    """`--only` puts the log and the summary aside first; killed while it copies, they are as they
    were.
    """
    pipeline.run(recipe, tmp_path / "crash")

    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        monkeypatch.setattr(
            shutil, "rmtree", lambda path, ignore_errors=False: None
        )  # the dead clear nothing away
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copy2", half)
    monkeypatch.setattr(resume, "recover", lambda directory: None)
    with pytest.raises(KeyboardInterrupt):
        resume.rerun(recipe, tmp_path / "crash", "ppo")
    monkeypatch.undo()
    assert any(
        p.read_bytes().count(b"\n") < 3 for p in tmp_path.rglob("*") if p.name == "metrics.jsonl"
    )
    resume.resume(recipe, tmp_path / "crash")
    assert left(tmp_path / "crash") == undisturbed


class At(Silent):
    """Sets the event as a stage begins."""

    def __init__(self, stop: Event, stage: str) -> None:
        self.stop, self.stage = stop, stage

    def begin(self, stage: str, kind: str, total: int) -> None:
        if stage == self.stage:
            self.stop.set()


@pytest.mark.parametrize("stage", ["kept", "order", "look"])
def test_a_stage_that_only_draws_is_left_while_it_draws_and_begins_anew(
    tmp_path, recipe, undisturbed, stage
):
    stop = Event()
    with pytest.raises(Stopped, match=f"while stage {stage} drew"):
        pipeline.run(recipe, tmp_path / "crash", At(stop, stage), stop)
    resume.resume(recipe, tmp_path / "crash")
    assert left(tmp_path / "crash") == undisturbed


def test_what_was_trained_is_measured_and_kept_before_a_stop(tmp_path, recipe, undisturbed):
    stop = Event()
    with pytest.raises(Stopped, match="after stage mean"):
        pipeline.run(recipe, tmp_path / "crash", At(stop, "mean"), stop)
    resume.resume(recipe, tmp_path / "crash")
    assert left(tmp_path / "crash") == undisturbed
