"""Recipes of many stages: what each is handed, what it leaves, and one of them run again alone."""

import json
import shutil

import pytest

from whet.cli.main import main
from whet.config.load import parse_recipe
from whet.errors import RecipeError, RewardError

RECIPE = """
name = "all"
result = "rl"

[task]
name = "chain"
operations = 1

[model.shape]
hidden = 32
layers = 1
heads = 2
kv_heads = 2
ffn = 64

[evaluation]
problems = 40
max_tokens = 12

[[stage]]
name = "base"
kind = "sft"
mix = { direct = 0.5, careful = 0.5 }
steps = 60
optimizer = { kind = "muon", lr = 0.02, lr_rest = 0.01 }

[[stage]]
name = "kept"
kind = "reject"
problems = 60
samples = 4
max_tokens = 16

[[stage]]
name = "again"
kind = "sft"
start = "base"
data = { kept = 0.7, corpus = 0.3 }
mix = { direct = 1.0 }
steps = 5

[[stage]]
name = "order"
kind = "rank"
by = "reward"
problems = 60
samples = 6
max_tokens = 16

[[stage]]
name = "rm"
kind = "reward_model"
start = "base"
data = "order"
held_out = 0.3
steps = 5

[[stage]]
name = "dpo"
kind = "dpo"
data = "order"
reference = "base"
steps = 3
evaluate = false

[[stage]]
name = "both"
kind = "merge"
models = { again = 0.5, dpo = 0.5 }

[[stage]]
name = "rl"
kind = "rl"
algorithm = "ppo"
critic = { lr = 1e-3, start = "rm" }
reference = "base"
steps = 2
prompts = 4
samples = 4
max_tokens = 12
probe = 0

[[stage.reward]]
name = "learned"
model = "rm"

[[stage.reward]]
name = "task"
weight = 0.0
"""


def rows(folder, stage):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "all.toml").write_text(RECIPE)
    assert main(["run", str(folder / "all.toml"), "--runs", str(folder)]) == 0
    return folder


def test_every_stage_leaves_its_product(ran):
    summary = json.loads((ran / "all/summary.json").read_text())
    records = {s["name"]: s for s in summary["stages"]}
    assert list(records) == ["base", "kept", "again", "order", "rm", "dpo", "both", "rl"]
    assert {n for n, s in records.items() if s["accuracy"] is not None} == {
        "base",
        "again",
        "both",
        "rl",
    }
    assert (
        records["rm"]["pairs"]["n"] > 0
        and 0 <= records["rm"]["pairs"]["low"] <= records["rm"]["pairs"]["accuracy"]
    )
    configs = {
        p.parent.name: json.loads((p / "config.json").read_text())
        for p in (ran / "all").glob("*/model")
    }
    assert set(configs) == {"base", "again", "rm", "dpo", "both", "rl"}
    assert (
        configs["rm"]["architectures"]
        == ["Qwen3ForSequenceClassification"]
        != configs["rl"]["architectures"]
    )
    assert (ran / "all/model/model.safetensors").read_bytes() == (
        ran / "all/rl/model/model.safetensors"
    ).read_bytes()
    assert " pairs</td>" in (ran / "all/report.html").read_text()


def test_a_stage_is_paid_by_its_own_reward_and_all_are_measured_by_the_recipes(ran):
    values = rows(ran / "all", "rl")[0]["values"]
    assert values["reward"] == pytest.approx(values["part_learned"]) != values["part_task"]
    assert 0 <= values["accuracy"] <= 1 and values["accuracy"] == pytest.approx(values["part_task"])
    assert set(json.loads((ran / "all/summary.json").read_text())["stages"][-1]["parts"]) <= {
        "task",
        "accuracy",
    }


def test_the_critic_starts_as_the_reward_model(ran):
    """Its first values are the reward model's, whose training mean is 0, not a head's of zeros."""
    assert abs(rows(ran / "all", "rl")[0]["values"]["value"]) > 1e-4


def test_one_stage_alone_is_the_stage_of_the_whole_run(ran, capsys):
    folder = ran / "all"
    for stage in ("rl", "again", "rm"):
        before = rows(folder, stage), (folder / stage / "model/model.safetensors").read_bytes()
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert main(["run", str(ran / "all.toml"), "--runs", str(ran), "--only", stage]) == 0
        after = rows(folder, stage), (folder / stage / "model/model.safetensors").read_bytes()
        assert [r["values"] for r in before[0]] == [r["values"] for r in after[0]] and before[
            1
        ] == after[1]
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(lines)
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["seconds"] > sum(s["seconds"] for s in summary["stages"])
        assert [s["name"] for s in json.loads((folder / "summary.json").read_text())["stages"]][
            -1
        ] == "rl"
    assert "rm, step 0: ran alone: dpo, both, rl still stand on what it was before" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_stage_that_fails_alone_leaves_what_it_was(ran, capsys, monkeypatch):
    from whet.stages import rl

    def broken(policy, stage, context):
        (context.log.directory / "rl").mkdir()
        raise RewardError("the verifier has left")

    before = {
        p: p.read_bytes()
        for p in (ran / "all").rglob("*")
        if p.is_file() and p.name not in ("recipe.toml", "summary.json")
    }
    monkeypatch.setattr(rl, "run", broken)
    assert main(["run", str(ran / "all.toml"), "--runs", str(ran), "--only", "rl"]) == 2
    assert "the verifier has left" in capsys.readouterr().err
    after = {
        p: p.read_bytes()
        for p in (ran / "all").rglob("*")
        if p.is_file() and p.name not in ("recipe.toml", "summary.json")
    }
    assert before == after


def test_a_run_of_several_seeds_has_stages_that_run_alone(ran):
    shutil.copytree(ran / "all", ran / "all-seed1")  # as seed=1..5 names them
    assert (
        main(["run", str(ran / "all.toml"), "--runs", str(ran), "--only", "dpo", "name=all-seed1"])
        == 0
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "rx"], "the recipe has no such stage; known: again, base"),
        (["--only", "rl", "seed=9"], "seed of the stages before it differ"),
        (
            ["--only", "rl", "stage.base.steps=61"],
            "stage.base.steps of the stages before it differ",
        ),
        (["--only", "rl", "name=other"], "holds no run whose stages"),
        (["--only", "rl", "seed=1..2"], "give one seed"),
    ],
)
def test_what_cannot_be_rerun_is_refused_and_nothing_is_lost(ran, capsys, words, says):
    before = {p: p.stat().st_mtime_ns for p in ran.rglob("*")}
    assert main(["run", str(ran / "all.toml"), "--runs", str(ran), *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in ran.rglob("*")} == before


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "data = { kept = 0.7, corpus = 0.3 }",
            "data = { kep = 0.7 }",
            "neither corpus nor an earlier reject stage; did you mean 'kept'",
        ),
        (
            "data = { kept = 0.7, corpus = 0.3 }",
            "data = { kept = 0.0 }",
            "no share in data is above 0",
        ),
        (
            'data = "order"\nheld',
            'data = "ordr"\nheld',
            "no earlier rank stage, no file and no data set of the Hub; did you mean 'order'",
        ),
        ('by = "reward"', 'by = "task"', "task chain ranks nothing"),
        (
            "{ again = 0.5, dpo = 0.5 }",
            "{ again = 0.5, dpo = 0.6 }",
            "sum to 1.1; they must sum to 1",
        ),
        ("{ again = 0.5, dpo = 0.5 }", "{ again = 1.0 }", "models"),
        ("{ again = 0.5, dpo = 0.5 }", "{ again = 0.5, dbo = 0.5 }", "no directory 'dbo'"),
        ('start = "rm" }', 'start = "rn" }', "no directory 'rn'"),
        ('model = "rm"', 'model = "rn"', "no directory 'rn'"),
        ('model = "rm"', 'modell = "rm"', "unknown option 'modell'; did you mean 'model'"),
        (
            "[evaluation]",
            '[[reward]]\nname = "learned"\nmodel = "rm"\n[evaluation]',
            "makes its model only later",
        ),
    ],
)
def test_what_would_stop_a_later_stage_stops_the_run_before_its_first(
    tmp_path, capsys, old, new, says
):
    text = RECIPE.replace(old, new)
    assert text != RECIPE
    (tmp_path / "r.toml").write_text(text)
    assert main(["run", str(tmp_path / "r.toml"), "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert (
        says in error and error.count("\n") == 1 and not (tmp_path / "all/metrics.jsonl").exists()
    )


def test_an_unknown_key_of_every_kind_of_stage_is_told_the_nearest():
    import tomllib

    for kind, key, near in (
        ("rank", "longr", "longer"),
        ("reward_model", "held_ot", "held_out"),
        ("dpo", "bta", "beta"),
        ("merge", "modls", "models"),
    ):
        data = tomllib.loads(RECIPE)
        next(s for s in data["stage"] if s["kind"] == kind)[key] = 1
        with pytest.raises(RecipeError, match=f"did you mean '{near}'"):
            parse_recipe(data)
