"""Every key of a recipe does something: the schema is walked, each key is set to another value, and
a small run must leave other files, or refuse it.

What merely repeats the recipe does not count. A key that a stage would not read is refused there.
"""

import copy
import json
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin
from unittest.mock import patch

import pytest
import torch
from pydantic import BaseModel

from whet import config
from whet.config.load import parse_recipe
from whet.errors import RecipeError, WhetError
from whet.model.transformer import Layer
from whet.pipeline import pipeline
from whet.preflight import fake_hub
from whet.storage.run_log import Silent

from .faults.crash import left

ECHO = {
    "recipe.toml",
    "origin.json",
}  # they hold the recipe, so a key that nothing reads changes them too
SFT = {
    "name": "base",
    "kind": "sft",
    "mix": {"direct": 1.0},
    "steps": 3,
    "batch": 4,
    "optimizer": {"lr": 1e-2},
}
SFT2 = {**SFT, "name": "again", "start": "base", "evaluate": False}
RANK = {
    "name": "order",
    "kind": "rank",
    "by": "reward",
    "problems": 8,
    "samples": 16,
    "max_tokens": 4,
}
RANK["reward"] = [{"name": "overlong", "max_tokens": 4, "cache": 4}]
RM = {
    "name": "rm",
    "kind": "reward_model",
    "data": "order",
    "steps": 3,
    "batch": 2,
    "optimizer": {"lr": 1e-2},
}
RL = {
    "name": "it",
    "kind": "rl",
    "steps": 3,
    "prompts": 4,
    "samples": 4,
    "max_tokens": 4,
    "probe": 1,
    "probe_every": 2,
}
RL |= {"reward": RANK["reward"], "optimizer": {"lr": 1e-2}, "evaluate": False}
IT: dict[str, dict[str, Any]] = {  # by kind, a stage that is looked at
    "sft": {**SFT, "name": "it", "evaluate": False},
    "reject": {"name": "it", "kind": "reject", "problems": 20, "samples": 8, "max_tokens": 12},
    "rank": {**RANK, "name": "it"},
    "reward_model": {**RM, "name": "it"},
    "dpo": {**RM, "name": "it", "kind": "dpo", "evaluate": False},
    "rl": RL,
    "merge": {
        "name": "it",
        "kind": "merge",
        "models": {"base": 0.5, "again": 0.5},
        "evaluate": False,
    },
    "evaluate": {"name": "it", "kind": "evaluate", "problems": 8, "max_tokens": 4},
}
BEFORE = {
    "reward_model": [SFT, RANK, {**RANK, "name": "fewer", "problems": 6}],
    "dpo": [SFT, SFT2, RANK, {**RANK, "name": "fewer", "problems": 6}],
    "merge": [SFT, SFT2],
}
IT["dpo"]["start"] = "base"
MIX = {"name": "mix", "parts": [{"name": "chain", "operations": 1}, {"name": "taste"}]}
SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 16}
FAILS = """def reward(completions, **columns):
    return [1 / (len(str(completions)) % 3) for _ in completions]
"""
# Where a key is read only beside others: {part of its name: keys of its stage, or of the recipe
# where they begin with a colon}.
BESIDE: dict[str, dict[str, Any]] = {
    "reject": {":before": [], "start": "SKILLED"},
    "task": {":task": {"name": "taste"}, ":stage": [{**IT["evaluate"], "start": "new"}]},
    "only": {":task": MIX, ":before": [], "start": "new"},
    "stage.sft.only": {"mix": {"direct": 0.5, "coarse": 0.25, "careful": 0.25}},
    "stage.sft.data": {
        ":before": [{**IT["reject"], "name": "kept", "start": "SKILLED"}],
        "start": "SKILLED",
    },
    "stage.sft.shape": {"shape": SHAPE},
    "gate": {
        ":before": [],
        "start": "SKILLED",
        "gate": {"mode": "direct", "accuracy": 0.0, "every": 2, "samples": 16, "max_tokens": 12},
    },
    "lora": {"lora": {"rank": 2, "alpha": 4}},
    "longer": {
        ":before": [],
        "start": "SKILLED",
        "reward": [],
        "by": "length",
        "problems": 20,
        "max_tokens": 12,
    },
    "critic": {"algorithm": "ppo", "override": {"warmup": 0}, "critic": {"lr": 1e-2}},
    "critic.start": {":before": [SFT, RANK, RM], "start": "base"},
    "stage.rl.reference": {
        ":before": [SFT, SFT2],
        "start": "base",
        "algorithm": "grpo",
        "override": {"beta": 0.5},
    },
    "ahead": {"override": {"correction": "token"}},
    "draws": {"algorithm": "dapo", "reward": []},
    "pool": {"algorithm": "kimi"},
    "max_errors": {"max_errors": 0.9, "reward": [{"name": "FAILS:reward"}]},
    "optimizer.lr_rest": {"optimizer": {"kind": "muon", "lr": 1e-2}},
    "critic.lr_rest": {"critic": {"kind": "muon", "lr": 1e-2}},
    "ask": {":model": {"path": "MODEL"}},
    "thinking": {":model": {"path": "MODEL"}},
    "model.dtype": {":model": {"path": "MODEL"}, ":stage": [IT["evaluate"]]},
    "model.path": {":model": {"path": "MODEL"}},
    "model.device": {":model": {"shape": SHAPE, "device": "cpu"}},
}
OTHER: dict[str, Any] = {  # by key, or the end of it: another value than that of the stages above
    "name": "other", "about": "something else", "seed": 2, "result": "base", "task.name": "chain",
    "kind": "nothing",
    "model.path": "OTHER", "dtype": "bfloat16", "device": "cuda", "threads": 2, "recompute": True,
    "family": "llama", "hidden": 8, "layers": 2, "heads": 1, "shape.kv_heads": 2, "ffn": 8,
    "max_positions": 64,
    "system": "Be brief.", "ask.thinking": False, "thinking": "off", "reward.name": "format",
    "reward.weight": 0.5,
    "problems": 6, "samples": 3, "temperature": 0.5, "top_p": 0.3, "top_k": 1, "max_tokens": 3,
    "every": 3, "last": 1,
    "start": "new", "data": "fewer", "stage.sft.data": {"corpus": 0.5, "kept": 0.5}, "mix": {"careful": 1.0},
    "steps": 4, "batch": 3, "micro_tokens": 8, "evaluate": True, "only": "chain",
    "models": {"base": 0.25, "again": 0.75},
    "optimizer.kind": "muon", "critic.kind": "muon", "lr": 2e-2, "lr_rest": 1e-3, "betas": [0.5,
    0.5], "weight_decay": 10.0,
    "schedule": "linear", "warmup": 2, "max_grad_norm": 1e-3, "rank": 1, "alpha": 8,
    "targets": ["q_proj"], "lora.merge": False,
    "gate.mode": "careful", "accuracy": 1.0, "above": "direct", "gate.every": 1, "gate.max_tokens": 1,
    "per_prompt": 2, "choose": "shortest", "by": "length", "longer": 3.0, "held_out": 0.5,
    "beta": 0.5, "reference": "again",
    "algorithm": "grpo", "override": {"updates": 2}, "critic.start": "rm", "pool": 5, "prompts": 3,
    "ahead": 1, "draws": 5,
    "max_errors": 0.0, "probe": 2, "probe_every": 1,
}  # fmt: skip
# by pattern of a key: what is said where its other value is refused before anything runs
REFUSED = {
    r"stage\.\w+\.kind": "is not known", r"stage\.merge\.start": "drop start",
    r"stage\.reward_model\.lora\.merge": "drop lora.merge",
}  # fmt: skip


def keys(table: type[BaseModel], before: str = "") -> Iterator[str]:
    """Every key that a table may have, those of the tables in it included; of stages, by their
    kind.
    """
    for name, field in table.model_fields.items():
        if name == "stage":
            for kind in get_args(get_args(config.AnyStage)[0]):
                yield from keys(kind, f"stage.{get_args(kind.model_fields['kind'].annotation)[0]}.")
            continue
        inner = [
            t for t in _types(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)
        ]
        yield from keys(inner[0], f"{before}{name}.") if inner else [before + name]


def _types(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list):
        for part in get_args(annotation):
            yield from _types(part)
    else:
        yield annotation


def ends(key: str, table: Mapping[str, Any]) -> Any:
    """What a table says of a key, under the longest end of its name that the table has. Raises
    KeyError where it says nothing.
    """
    words = key.split(".")
    return next(
        table[end]
        for i in range(len(words))
        if (end := ".".join(words[i:])) in table or i == len(words) - 1
    )


def base(key: str) -> dict[str, Any]:
    """A recipe in which the key is read."""
    kind = key.split(".")[1] if key.startswith("stage.") else None
    stage = dict(IT[kind] if kind else SFT2)
    recipe: dict[str, Any] = {
        "name": "it",
        "task": {"name": "chain", "operations": 1},
        "model": {"shape": SHAPE},
    }
    recipe |= {"evaluation": {"problems": 8, "max_tokens": 4}, "save": {"every": 1}}
    before = BEFORE.get(kind or "", [SFT])
    for part, besides in BESIDE.items():
        if f".{part}." in f".{key}.":
            recipe |= {k[1:]: v for k, v in besides.items() if k[0] == ":" and k != ":before"}
            stage |= {k: v for k, v in besides.items() if k[0] != ":"}
            before = besides.get(":before", before)
    return {"stage": [*before, stage], **recipe}


def changed(recipe: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *path, last = key.split(".")
    recipe = copy.deepcopy(recipe)
    table: Any = recipe
    if path[:1] == ["stage"]:
        table, path = recipe["stage"][-1], path[2:]
    for word in path:
        table = table.setdefault(word, [{"name": "task"}] if word == "reward" else {})
        table = table[0] if isinstance(table, list) else table
    if key.endswith("reward.name"):
        table.clear()
    table[last] = value
    return recipe


class Watched(Silent):
    """What a run keeps while it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, list[Any]()

    def step(self, done: int, values: Mapping[str, float]) -> None:
        self.seen.append(
            sorted(str(p.relative_to(self.folder)) for p in self.folder.glob("*/checkpoints/*"))
        )


def outcome(data: dict[str, Any], folder: Path, places: Mapping[str, Path]) -> dict[str, Any]:
    """All that a run has left and done; or what it was refused with. What repeats the recipe is
    left out.
    """
    text = json.dumps(data)
    for word, place in places.items():
        text = text.replace(f'"{word}', f'"{place}')
    recipe, threads, seen = (
        parse_recipe(json.loads(text)),
        torch.get_num_threads(),
        Watched(folder),
    )
    try:
        with patch.object(Layer, "forward", autospec=True, side_effect=Layer.forward) as layers:
            pipeline.run(recipe, folder, seen)
        left_behind: dict[str, Any] = {
            **left(folder),
            "kept": seen.seen,
            "threads": torch.get_num_threads(),
        }
        left_behind["layers"] = layers.call_count  # what is made again is made of the same bits
    except WhetError as refusal:
        return {"refused": str(refusal)}
    finally:
        torch.set_num_threads(threads)
    for stage in left_behind["summary.json"]["stages"]:
        stage.pop("sampling", None)
        stage.pop("algorithm", None)
    return {k: v for k, v in left_behind.items() if k not in ECHO}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Files that the recipes name: models of the Hub, a reward that fails at times, a model whose
    answers are right at times.
    """
    folder = tmp_path_factory.mktemp("places")
    (folder / "fails.py").write_text(FAILS)
    known = {
        word: fake_hub.fake_model(f"Qwen/Qwen3-{size}", folder / word)
        for word, size in (("MODEL", "0.6B"), ("OTHER", "1.7B"))
    }
    skilled = {
        **SFT,
        "mix": {"direct": 0.5, "careful": 0.5},
        "steps": 250,
        "batch": 16,
        "evaluate": False,
    }
    skilled |= {
        "shape": {**SHAPE, "hidden": 32, "ffn": 64},
        "optimizer": {"kind": "muon", "lr": 0.02, "lr_rest": 0.01},
    }
    pipeline.run(
        parse_recipe(
            {"name": "it", "task": {"name": "chain", "operations": 1}, "stage": [skilled]}
        ),
        folder / "skilled",
    )
    return {**known, "FAILS": folder / "fails.py", "SKILLED": folder / "skilled" / "model"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, places):
    """Outcomes of recipes as they are, each run once."""
    outcomes: dict[str, Any] = {}

    def of(recipe: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(recipe)
        if text not in outcomes:
            outcomes[text] = outcome(recipe, tmp_path_factory.mktemp("base") / "it", places)
        return outcomes[text]

    return of


@pytest.mark.parametrize("key", list(keys(config.Recipe)))
def test_a_key_changes_what_a_run_leaves_or_is_refused(key, tmp_path, places, undisturbed):
    recipe, value = base(key), ends(key, OTHER)
    other = changed(recipe, key, value)
    assert other != recipe
    before = undisturbed(recipe)
    assert "refused" not in before, before
    if key == "about":  # for who reads the recipe
        return
    if refusal := next(
        (message for pattern, message in REFUSED.items() if re.fullmatch(pattern, key)), None
    ):
        with pytest.raises(RecipeError, match=refusal):
            outcome(other, tmp_path / "it", places)
    else:
        assert outcome(other, tmp_path / "it", places) != before


@pytest.mark.parametrize(
    ("kind", "besides"),
    [
        ("rl", {"draws": 5}),
        ("rl", {"probe": 0, "probe_every": 3}),
        ("rl", {"pool": 5}),
        ("rl", {"reference": "base"}),
        ("rl", {"critic": {"lr": 1e-3}}),
        ("rl", {"optimizer": {"lr_rest": 1e-3}}),
        ("rank", {"longer": 3.0}),
        ("sft", {"data": "kept", "mix": {"direct": 1.0}}),
        ("sft", {"only": "chain"}),
    ],
)
def test_where_it_would_not_be_read_a_key_is_refused_by_name(kind, besides, tmp_path):
    data = base(f"stage.{kind}.steps")
    data["stage"] = [SFT, {**IT["reject"], "name": "kept"}, {**IT[kind], **besides}]
    key = "lr_rest" if "optimizer" in besides else "mix" if "mix" in besides else list(besides)[-1]
    with pytest.raises(
        RecipeError, match=rf"\b{key}\b.*drop|only = .* means nothing|trains no critic"
    ):
        pipeline.run(parse_recipe(data), tmp_path / "it")
    assert not (tmp_path / "it").exists()


def test_a_model_that_is_given_has_its_own_shape(tmp_path):
    given = fake_hub.fake_model("Qwen/Qwen3-0.6B", tmp_path / "given")
    data = {**base("seed"), "model": {"path": str(given), "shape": SHAPE}}
    with pytest.raises(RecipeError, match=r"model\.shape would not be read"):
        pipeline.run(parse_recipe(data), tmp_path / "it")


def test_the_walk_meets_a_key_that_nobody_has_thought_of():
    class Odd(config.Save):
        dummy: int = 0

    assert list(keys(Odd)) == ["every", "last", "dummy"] and len(list(keys(config.Recipe))) > 150
    with pytest.raises(KeyError):
        ends("save.dummy", OTHER)
