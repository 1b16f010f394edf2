"""`whet check` finds what would fail or mislead, each thing by its name."""

import copy
from dataclasses import replace

import pytest
import torch

from whet import config
from whet.cli.main import main
from whet.errors import WhetError
from whet.preflight import check, memory
from whet.types import Score

from .helpers.tiny_world import world

TINY = """
name = "tiny"
task = { name = "chain", operations = 2 }
[model.shape]
hidden = 32
layers = 1
heads = 2
kv_heads = 2
ffn = 48
[[stage]]
name = "base"
kind = "sft"
steps = 2
mix = { careful = 1.0 }
[[stage]]
name = "rl"
kind = "rl"
algorithm = "ppo"
steps = 2
max_tokens = 16
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_a_sound_recipe_passes(recipe, capsys):
    assert main(["check", str(recipe)]) == 0
    output = capsys.readouterr().out
    for name in (
        "tokenizer",
        "masks",
        "sampler",
        "publication",
        "memory",
        "reward",
        "stage base",
        "stage rl",
        "time",
    ):
        assert f"ok   {name}" in output
    assert "FAIL" not in output and "dry step" not in output


def test_what_is_wrong_is_named_and_the_exit_says_so(recipe, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000.0)
    assert main(["check", str(recipe)]) == 1
    output = capsys.readouterr().out
    assert "FAIL memory" in output and "micro_tokens" in output and "1 of these" in output
    assert main(["check", str(recipe), "task.name=chian"]) == 1
    assert "did you mean 'chain'" in capsys.readouterr().out
    assert main(["check", str(recipe), "stage.rl.algorithm=drgrpo"]) == 2  # no recipe to check
    assert "did you mean 'dr_grpo'" in capsys.readouterr().err


def looked(tmp_path, judge=None):
    model, context = world(tmp_path, judge)
    return model, context, context.task.problems("train", 6, 0)


def test_a_reward_that_pays_the_wrong_answers_is_found(tmp_path):
    _, context, problems = looked(tmp_path)
    assert "0 of 16 right ones refused, 0 wrong ones accepted" in check.reward(context, problems)
    _, context, problems = looked(tmp_path, lambda p, t: [Score(1.0)] * len(t))
    with pytest.raises(WhetError, match="teach nothing"):
        check.reward(context, problems)
    _, context, problems = looked(tmp_path, lambda p, t: [Score(0.0, "timeout")] * len(t))
    with pytest.raises(WhetError, match="failed on 32 of 32"):
        check.reward(context, problems)


class Stale:
    """An engine that copied the weights when it was made."""

    version = 0

    def __init__(self, context, model, chat):
        self.inner = context.engine(copy.deepcopy(model), chat)

    def generate(self, prompts, sampling, progress=None):
        return self.inner.generate(prompts, sampling, progress)


def test_a_sampler_with_old_weights_or_another_temperature_is_found(tmp_path):
    model, context, problems = looked(tmp_path)
    check.sampler(context, model, problems)
    check.publication(context, model, problems)
    stale = replace(context, engine=lambda m, chat: Stale(context, m, chat))
    with pytest.raises(WhetError, match="does not see new weights"):
        check.publication(stale, model, problems)
    check.sampler(stale, model, problems)

    class Warm(Stale):
        def generate(self, prompts, sampling, progress=None):
            return self.inner.generate(prompts, replace(sampling, temperature=0.7), progress)

    with pytest.raises(WhetError, match="differ by"):
        check.sampler(
            replace(context, engine=lambda m, chat: Warm(context, m, chat)), model, problems
        )


def test_a_tokenizer_that_does_not_fit_is_found(tmp_path):
    model, context, problems = looked(tmp_path)
    small = copy.deepcopy(model)
    small.config = replace(model.config, vocab=context.chat.vocab - 1)
    with pytest.raises(WhetError, match="do not belong together"):
        check.tokenizer(context, small, problems)
    small.config = replace(model.config, max_positions=3)
    with pytest.raises(WhetError, match="positions"):
        check.tokenizer(context, small, problems)
    forgetful = copy.copy(context.chat)
    forgetful.decode = lambda tokens: "7"
    with pytest.raises(WhetError, match="comes back from the tokenizer as '7'"):
        check.tokenizer(replace(context, chat=forgetful), model, problems)
    with pytest.raises(WhetError, match="mask keeps '7'"):
        check.masks(replace(context, chat=forgetful), problems)


def test_a_dry_step_leaves_the_model_as_it_was(tmp_path):
    model, context, problems = looked(tmp_path)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    stage = config.RL(name="rl", kind="rl", steps=9, algorithm="vapo", max_tokens=8)
    assert "2 models in memory" in check.dry_step(context, copy.deepcopy(model), stage, problems)
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), before)
