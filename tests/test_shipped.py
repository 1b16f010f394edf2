"""What whet brings and prints about itself: recipes by name, options, and the schema of recipes."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Literal, get_args

import pytest
from pydantic import BaseModel, Field

from whet import config, tasks
from whet.cli.main import main
from whet.cli.schema import recipe_schema
from whet.config import load
from whet.errors import RecipeError
from whet.options import Options, options
from whet.rewards import names as rewards
from whet.rewards import registry

ROOT = Path(__file__).parents[1]
RECIPES = {path.stem: path for path in (ROOT / "recipes").glob("*.toml")}


def test_recipes_are_listed_with_what_they_are_for(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["recipes"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name, path in RECIPES.items():
        assert tomllib.loads(path.read_text())["about"] in lines[name]
        assert ("miniature" if name.endswith("-mini") else "real") in lines[name].split()[1]


def test_a_recipe_is_found_by_name_where_no_such_file_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert load.load_recipe(Path("r1-zero-mini")).name == "r1-zero-mini"
    assert main(["show", "r1-zero-mini", "seed=7"]) == 0 and "seed = 7" in capsys.readouterr().out
    assert main(["show", "r1-zero-min"]) == 2
    assert "did you mean 'r1-zero-mini'?" in capsys.readouterr().err
    (tmp_path / "r1-zero-mini").write_text(RECIPES["gsm8k"].read_text())
    assert load.load_recipe(Path("r1-zero-mini")).name == "gsm8k"


def test_an_installed_wheel_has_its_recipes_inside(tmp_path, monkeypatch):
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["force-include"] == {"recipes": "whet/recipes"}
    package = tmp_path / "site-packages/whet"
    shutil.copytree(ROOT / "recipes", package / "recipes")
    monkeypatch.setattr(load, "files", lambda name: package)
    assert load.shipped_recipes() == {n: package / "recipes" / f"{n}.toml" for n in sorted(RECIPES)}
    assert set(load.shipped_recipes()) == set(RECIPES)
    shutil.rmtree(package / "recipes")
    assert load.shipped_recipes() == {} and main(["recipes"]) == 2


def tables(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The model and every table within it, by name."""
    known = {model.__name__: model}
    for field in model.model_fields.values():
        for table in inner(field.annotation):
            if table.__name__ not in known:
                known |= tables(table)
    return known


def inner(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from inner(part)


NAMED = [("task", name) for name, _ in tasks.names()] + [("reward", name) for name in rewards()]


@pytest.mark.parametrize(("what", "name"), [("recipe", ""), *NAMED])
def test_every_key_says_what_it_means(what, name):
    model = config.Recipe
    if name:
        model = (tasks if what == "task" else registry).model(name)
    lacking = [
        f"{name}.{key}"
        for name, table in tables(model).items()
        for key, field in table.model_fields.items()
        if not field.description
    ]
    assert not lacking


@pytest.mark.parametrize("name", [name for name, _ in tasks.names()])
def test_a_task_prints_its_options(name, capsys):
    assert main(["tasks", name]) == 0
    out = capsys.readouterr().out
    for option in tasks.options(name):
        assert f"{option.name}  {option.kind}" in out
    assert ("A problem:" in out) == (name in ("chain", "countdown", "knights", "taste"))


def test_a_task_that_is_not_there_and_one_that_its_name_completes(capsys):
    assert main(["tasks", "chian"]) == 2 and "did you mean 'chain'" in capsys.readouterr().err
    fixed = {option.name for option in tasks.options("hf:a/b")}
    assert "path" not in fixed and {"question", "budget.min"} <= fixed
    assert "dataset" not in {option.name for option in tasks.options("gym:NAME")}


@pytest.mark.parametrize("name", list(rewards()))
def test_a_reward_prints_its_options(name, capsys):
    assert main(["reward", "list", name]) == 0
    out = capsys.readouterr().out
    assert all(f"{option.name}  " in out for option in registry.options(name))


# ---- the schema


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", RECIPES)
def test_the_schema_accepts_every_recipe(name, validator):
    validator.validate(tomllib.loads(RECIPES[name].read_text()))


@pytest.mark.parametrize(
    "change",
    [
        {"sed": 1},
        {"seed": "one"},
        {"task": {"name": "chian"}},
        {"task": {"name": "chain", "operations": 31}},
        {"task": {"name": "chain", "operatons": 3}},
        {"task": {"name": "chain", "budget": {"min": 3}}},
        {"task": {"name": "mix", "parts": [{"name": "chain", "operatons": 3}]}},
        {"task": {"name": "hf:a/b", "path": "x"}},
        {"reward": [{"name": "maths"}]},
        {"reward": [{"name": "cosine", "cosin": 1}]},
        {"stage": [{"name": "a", "kind": "sft", "steps": 0}]},
        {"stage": [{"name": "a", "kind": "sft", "steps": 3, "stps": 3}]},
    ],
    ids=str,
)
def test_the_schema_refuses_what_a_recipe_may_not_say(change, validator):
    recipe = {"name": "x", "task": {"name": "chain"}}
    recipe["stage"] = [{"name": "a", "kind": "sft", "steps": 3}]
    assert validator.is_valid(recipe)
    assert not validator.is_valid({**recipe, **change})


def test_the_schema_accepts_what_names_complete(validator):
    stage = [{"name": "a", "kind": "sft", "steps": 3}]
    for task in (
        {"name": "gym:chain_sum", "min_terms": 2, "partial": False},
        {"name": "hf:a/b", "question": "q", "budget": {"min": 3, "max": 9}},
        {"name": "mix", "parts": [{"name": "chain", "as": "c", "weight": 0, "operations": 3}]},
    ):
        validator.validate({"name": "x", "task": task, "stage": stage})
    own = {"name": "my.py:score", "weight": 0.5, "anything": 1, "gate": "task"}
    validator.validate({"name": "x", "task": {"name": "chain"}, "reward": [own], "stage": stage})


def test_the_schema_is_printed(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() == config.Recipe.model_fields.keys()
    assert main(["schema", "task", "chain"]) == 0
    assert "operations" in json.loads(capsys.readouterr().out)["properties"]
    assert main(["schema", "task", "chian"]) == 2


# ---- faults in our words


class Inner(BaseModel):
    model_config = {"extra": "forbid", "strict": True}
    share: float = Field(default=0.5, ge=0, le=1, description="a share")
    word: str = "a"


class Outer(Options):
    owner = "task {title}"
    title: str = "x"
    table: Inner = Field(default=Inner(), strict=False)
    either: str | list[int] = "a"
    kinds: dict[Literal["one", "two"], int] = Field(default={})
    count: int = Field(ge=1)


FAULTS = {
    "count = 0; it must be at least 1": {"count": 0},
    'count = "3"; it must be a whole number': {"count": "3"},
    "the option 'count' is missing": {},
    "unknown option 'cuont'; did you mean 'count'?": {"count": 1, "cuont": 2},
    "table.share = 2.0; it must be between 0 and 1": {"count": 1, "table": {"share": 2.0}},
    "unknown option 'table.shar'; did you mean 'share'?": {"count": 1, "table": {"shar": 1}},
    "either = 3; it must be text or a list": {"count": 1, "either": 3},
    "unknown option 'kinds.tow'; did you mean 'two'?": {"count": 1, "kinds": {"tow": 1}},
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_names_the_option_its_value_and_the_cure(message):
    with pytest.raises(RecipeError) as caught:
        Outer(**{"title": "y", **FAULTS[message]})
    assert str(caught.value) == f"task y: {message}"


def test_options_of_tables_within_follow_their_table():
    named = {option.name: option for option in options(Outer)}
    assert list(named)[1:4] == ["table", "table.share", "table.word"]
    assert named["count"].default is None and named["count"].kind == "whole number, at least 1"
    assert named["table.share"][1:] == ("number, 0 to 1", "0.5", "a share")
