"""The commands as a user types them: what works leaves everything behind, what does not is one line
and exit code 2.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from whet.algorithms.table import TABLE
from whet.cli.main import main

TINY = """
name = "tiny"
result = "rl"

[task]
name = "chain"
operations = 2

[model.shape]
hidden = 32
layers = 1
heads = 2
kv_heads = 1
ffn = 48
max_positions = 64

[evaluation]
problems = 40
samples = 2
max_tokens = 24

[[stage]]
name = "base"
kind = "sft"
mix = { direct = 0.5, careful = 0.5 }
steps = 60
optimizer = { kind = "muon", lr = 0.02, lr_rest = 0.01 }

[[stage]]
name = "rl"
kind = "rl"
steps = 3
prompts = 4
samples = 4
max_tokens = 24
optimizer = { lr = 1e-3 }

[[stage]]
name = "kept"
kind = "reject"
problems = 200
max_tokens = 24

[[stage]]
name = "student"
kind = "sft"
data = "kept"
shape = { hidden = 16, layers = 1, heads = 2, kv_heads = 2, ffn = 24, max_positions = 64 }
steps = 3

[[stage]]
name = "greedy"
kind = "evaluate"
start = "rl"
problems = 20
temperature = 0.0
max_tokens = 24
"""


def whet(*words, cwd=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "whet.cli.main", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    (place / "tiny.toml").write_text(TINY)
    done = whet("run", "tiny.toml", "seed=2", cwd=place)
    assert done.returncode == 0, done.stderr + done.stdout
    return place, done


def test_a_run_leaves_everything_behind(ran):
    place, done = ran
    run = place / "runs/tiny"
    summary = json.loads((run / "summary.json").read_text())
    assert [s["name"] for s in summary["stages"]] == ["base", "rl", "kept", "student", "greedy"]
    for stage in summary["stages"]:
        assert {"kind", "seconds", "accuracy", "low", "high", "n"} <= set(stage)
        if stage["accuracy"] is not None:
            assert (
                0 <= stage["low"] <= stage["accuracy"] <= stage["high"] <= 1
                and stage["sampling"]["seed"] == 0
            )
    assert [s["n"] for s in summary["stages"]] == [40, 40, None, 40, 20]
    assert (
        summary["seed"] == 2 and summary["result"] == "rl" and summary["gain"]["before"] == "base"
    )
    gain = summary["gain"]
    assert gain["choosing"] + gain["reasoning"] == pytest.approx(gain["total"], abs=1e-9)
    for name in (
        "recipe.toml",
        "metrics.jsonl",
        "report.html",
        "model/config.json",
        "student/model/config.json",
    ):
        assert (run / name).stat().st_size > 0
    metrics = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["stage"] for m in metrics] == ["base"] * 60 + ["rl"] * 3 + ["kept"] + ["student"] * 3
    assert (run / "samples/rl/000003.jsonl").exists()
    assert (
        "base → rl" in done.stdout
        and "report.html" in done.stdout
        and "95 % interval" in done.stdout
    )


def test_the_model_is_that_of_the_result_and_loads_in_transformers(ran):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    place, _ = ran
    run = place / "runs/tiny"
    names = {p.name for p in (run / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert (run / "model/model.safetensors").read_bytes() == (
        run / "rl/model/model.safetensors"
    ).read_bytes()
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2*3="}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    made = model.generate(**asked, max_new_tokens=5, do_sample=False)
    assert made.shape[1] > asked["input_ids"].shape[1]


def test_eval_prints_json_with_the_settings_beside_the_score(ran):
    place, _ = ran
    done = whet(
        "eval", "runs/tiny/model", "--task", "chain", "--n", "4", "--problems", "30",
        "--max-tokens", "24", "--json",
        "--against", "runs/tiny/base/model", "operations=2", cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (
        result["n"] == 30
        and result["sampling"]["n"] == 4
        and set(result["pass_at"]) == {"1", "2", "4"}
    )
    assert (
        result["pass_at"]["1"] == pytest.approx(result["accuracy"]) and 0 <= result["majority"] <= 1
    )
    assert result["against"]["model"] == "runs/tiny/base/model"
    assert result["paired"]["n"] == 30 and 0 < result["paired"]["p"] <= 1
    assert result["paired"]["difference"] == pytest.approx(
        result["accuracy"] - result["against"]["accuracy"]
    )


def test_eval_prints_a_table_and_the_paired_test_in_words(ran):
    place, _ = ran
    words = (
        "--problems",
        "20",
        "--max-tokens",
        "24",
        "--against",
        "runs/tiny/rl/model",
        "operations=2",
    )
    done = whet("eval", "runs/tiny/model", "--task", "chain", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    result = " ".join(done.stdout.split())
    for word in ("pass@1", "95 % interval", "careful: share", "temperature 1.0"):
        assert word in result
    assert (
        "paired on the same 20 problems: +0.0 points [" in result
        and "p 1.0000 (McNemar, exact)" in result
    )


def test_the_same_seed_gives_the_same_figures(ran, tmp_path):
    place, _ = ran
    again = whet("run", str(place / "tiny.toml"), "--runs", str(tmp_path), "seed=2", "name=again")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again/model/model.safetensors").read_bytes() == (
        place / "runs/tiny/model/model.safetensors"
    ).read_bytes()


def test_several_seeds_make_one_table(ran, tmp_path):
    place, _ = ran
    done = whet(
        "run",
        str(place / "tiny.toml"),
        "seed=1..2",
        "stage.rl.steps=1",
        "stage.kept.problems=270",
        "--runs",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {
        "tiny-seed1",
        "tiny-seed2",
    } and "mean ± sd" in done.stdout


def refused(capsys, *words, naming):
    """One line on stderr, exit code 2, no traceback."""
    assert main(words) == 2
    result = capsys.readouterr()
    assert (
        result.err.count("\n") == 1
        and result.err.startswith("whet: ")
        and "Traceback" not in result.err
    )
    assert naming in result.err, result.err


def test_bad_input_is_one_line(ran, tmp_path, capsys):
    place, _ = ran
    recipe, runs = str(place / "tiny.toml"), str(tmp_path / "runs")
    run = ("run", recipe, "--runs", runs)
    refused(capsys, "run", str(tmp_path / "no.toml"), naming="no recipe at")
    refused(capsys, *run, "stage.rl.stps=3", naming="did you mean 'steps'?")
    refused(capsys, *run, "task.name=chian", naming="did you mean 'chain'?")
    refused(capsys, *run, "task.operation=3", naming="operation")
    refused(capsys, *run, "stage.rl.algorithm=gropo", naming="did you mean 'grpo'?")
    refused(capsys, *run, "stage.rl.override.cliphigh=1", naming="did you mean 'clip_high'?")
    refused(capsys, *run, "stage.base.mix.carefull=0.5", naming="did you mean 'careful'?")
    refused(capsys, *run, "seed=5..1", naming="rising range")
    refused(capsys, "run", recipe, "--runs", str(place / "runs"), naming="--overwrite")
    refused(capsys, *run, f"model.path={tmp_path}/nothing", naming="nothing")
    refused(capsys, *run, "reward=[{name='no_such_module:reward'}]", naming="no_such_module")
    refused(capsys, "eval", str(tmp_path / "nothing"), "--task", "chain", naming="nothing")
    refused(
        capsys,
        "eval",
        str(place / "runs/tiny/model"),
        "--task",
        "chain",
        "--problems",
        "0",
        naming="problems",
    )
    refused(capsys, "report", str(tmp_path / "nothing"), naming="no run at")
    refused(capsys, "show", recipe, "nonsense", naming="key=value")
    assert not Path(runs).exists() or not any(Path(runs).iterdir())


def test_bad_data_is_one_line(ran, tmp_path, capsys):
    place, _ = ran
    model = str(place / "runs/tiny/model")
    data = tmp_path / "data.jsonl"

    def on(text, naming, *more):
        data.write_text(text)
        refused(capsys, "eval", model, "--task", "files", f"path={data}", *more, naming=naming)

    on('{"question": "1+1=", "answer": "2"}\n{"question": \n', "data.jsonl:2: not JSON")
    on("", "empty")
    on('{"question": "1+1="}\n', "answer")
    on('{"qestion": "1+1=", "answer": "2"}\n', "qestion")
    refused(
        capsys, "eval", model, "--task", "files", f"path={tmp_path}/none.jsonl", naming="none.jsonl"
    )


def test_half_written_checkpoints_are_one_line(ran, tmp_path, capsys):
    import shutil

    place, _ = ran
    for broken, damage in {
        "weights": lambda d: (d / "model.safetensors").write_bytes(
            (d / "model.safetensors").read_bytes()[:-100]
        ),
        "config": lambda d: (d / "config.json").unlink(),
        "tokenizer": lambda d: (d / "tokenizer.json").write_text("{"),
        "absent": lambda d: (d / "model.safetensors").unlink(),
    }.items():
        copy = tmp_path / broken
        shutil.copytree(place / "runs/tiny/model", copy)
        damage(copy)
        refused(capsys, "eval", str(copy), "--task", "chain", naming=broken)


def test_overwrite_removes_runs_only(ran, tmp_path, capsys):
    place, _ = ran
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/thesis.txt").write_text("precious")
    refused(
        capsys,
        "run",
        str(place / "tiny.toml"),
        "--runs",
        str(tmp_path),
        "--overwrite",
        naming="holds no run",
    )
    assert (tmp_path / "tiny/thesis.txt").read_text() == "precious"


def test_options_may_stand_before_and_after_overrides(ran, capsys):
    place, _ = ran
    assert main(["show", str(place / "tiny.toml"), "seed=9"]) == 0
    assert "seed = 9" in capsys.readouterr().out
    refused(
        capsys,
        "run",
        str(place / "tiny.toml"),
        "--overwrite",
        "sed=1",
        naming="did you mean 'seed'?",
    )


def test_small_models_take_one_thread_unless_told(monkeypatch):
    import torch

    from whet import config
    from whet.chat import Chat
    from whet.pipeline import setup

    before = torch.get_num_threads()
    model = setup.new_policy(config.Shape(), Chat.from_characters("ab"), 1)
    try:
        for threads, want in ((0, 1), (2, 2)):
            setup.to_device(model, config.Model(threads=threads))
            assert torch.get_num_threads() == want
        monkeypatch.setattr(setup, "SMALL", 10)
        monkeypatch.setattr(setup, "THREADS", 3)
        setup.to_device(model, config.Model())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_tables_print(capsys):
    assert main(["algorithms"]) == 0 and main(["tasks"]) == 0
    result = capsys.readouterr().out
    for word in (
        *TABLE,
        "sequence_mean",
        "k1 × 0.02 in reward",
        "λ 1 − 1/(0.05 l), 1",
        "chain",
        "countdown",
        "gym:",
    ):
        assert word in result
