"""Recipes: what is right is kept, what is wrong is named in one line with the nearest right word."""

import copy
from pathlib import Path

import pytest

from whet import config
from whet.config.load import load_recipe, override_recipe, parse_recipe
from whet.errors import RecipeError

FILES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
BASE = {
    "name": "x",
    "task": {"name": "chain", "operations": 4},
    "stage": [
        {"kind": "sft", "name": "base", "steps": 3, "gate": {"mode": "careful", "accuracy": 0.5}},
        {"kind": "rl", "name": "rl", "steps": 3, "optimizer": {"lr": 1e-3}},
    ],
}
FAULTS = {
    "stage.rl.algorithm=drgrpo": "stage.rl: unknown algorithm 'drgrpo'; did you mean 'dr_grpo'?",
    "stage.rl.override.cliphigh=1": "stage.rl: algorithm dr_grpo: unknown option 'cliphigh'; did you",
    "stage.rl.override={ beta = 0.1 }": "stage.rl: algorithm dr_grpo: beta = 0.1 without kl",
    "stage.rl.stps=3": "unknown key 'stage.rl.stps'; did you mean 'steps'?",
    "stage.rl.optimizer.lrr=3": "unknown key 'stage.rl.optimizer.lrr'; did you mean 'lr'?",
    "stage.base.gate.acuracy=1": "unknown key 'stage.base.gate.acuracy'; did you mean 'accuracy'?",
    "sed=3": "unknown key 'sed'; did you mean 'seed'?",
    "model.shape.hiden=3": "did you mean 'hidden'?",
    "stage.r.steps=3": "no 'r' there; did you mean 'rl'?",
    "stage.rl.steps=0": "stage.rl.steps = 0; it must be at least 1",
    "seed=1.5": "seed = 1.5; it must be a whole number",
    "stage.rl.steps=true": "stage.rl.steps",
    "model.shape.hidden=30": "hidden (30) must be a multiple of 2 x heads (4)",
    "result=foo": "result = 'foo' makes no policy; known: base, rl",
    "stage.rl.kind=foo": 'stage.rl: kind = "foo" is not known; known: dpo, evaluate, merge, rank',
    "stage.rl.kind=prefer": "a stage has kind = 'prefer'; write kind = 'dpo'",
    "stage.base.data=3": "stage.base.data = 3; it must be text or a table",
    "stage.rl.optimizer.lr=nan": "nan and inf",
    "stage.rl.name=base": "two stages are named 'base'",
    "stage.rl.name=samples": "meaning of its own",
    "stage.base.data=rejects": "neither corpus nor an earlier reject stage",
    "model.dtype=float16": "model.dtype",
    "stage=3": "stage",
    "stage.steps=3": "stage.steps",
    "seed.x=3": "'seed' is a value, not a table",
    "seed": "write key=value",
    "name=../evil": "name",
}


def test_a_recipe_resolves():
    recipe = parse_recipe(copy.deepcopy(BASE))
    assert recipe.task.options == {"operations": 4}
    assert [s.kind for s in recipe.stage] == ["sft", "rl"]
    assert isinstance(recipe.stage[1], config.RL) and recipe.stage[1].optimizer.lr == 1e-3


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_is_named_in_one_line(text):
    data = copy.deepcopy({**BASE, "seed": 1})
    with pytest.raises(RecipeError) as caught:
        override_recipe(data, text)
        parse_recipe(data)
    assert FAULTS[text] in str(caught.value) and "\n" not in str(caught.value)


def test_every_fault_is_told_at_once():
    with pytest.raises(RecipeError) as caught:
        parse_recipe({**BASE, "sed": 1, "model": {"pth": "x"}})
    assert "'seed'" in str(caught.value) and "'path'" in str(caught.value)


def test_overrides_reach_tables_that_the_recipe_does_not_write_out():
    data = copy.deepcopy(BASE)
    for text in (
        "seed=7",
        "stage.rl.override.clip_high=0.3",
        "evaluation.problems=9",
        "stage.base.optimizer.kind=muon",
    ):
        override_recipe(data, text)
    recipe = parse_recipe(data)
    assert recipe.seed == 7 and recipe.evaluation.problems == 9
    assert isinstance(recipe.stage[1], config.RL) and recipe.stage[1].override == {"clip_high": 0.3}


def test_a_stage_has_the_row_of_its_algorithm_with_its_cells():
    stage = parse_recipe(BASE).stage[1]
    assert stage.row is stage.row and stage.row.name == "dr_grpo" and stage.row.updates == 1
    assert stage.model_copy(update={"override": {"updates": 2}}).row.updates == 2


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    with pytest.raises(RecipeError, match=r"broken\.toml"):
        load_recipe(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"broken\.toml"):
        load_recipe(broken)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_recipe_parses_and_is_short(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem and recipe.about
    for stage in recipe.stage:
        if isinstance(stage, config.RL):
            _ = stage.row
