"""Every recipe of the repository runs in small, offline, with fakes of the Hub's models and data."""

from pathlib import Path

import pytest

from whet import config
from whet.chat import Chat
from whet.cli.main import main
from whet.config.load import load_recipe
from whet.errors import DataError, ModelError
from whet.model import pretrained, value_head
from whet.model.transformer import Transformer
from whet.preflight import dry_run, fake_hub
from whet.preflight.check import findings
from whet.stages import rl

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_passes(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = load_recipe(path)
    data = [p for p in (recipe.task.options.get("path"), recipe.task.options.get("test")) if p]
    if any(not p.startswith("hf:") and not Path(p).exists() for p in data):
        pytest.skip("reads ../shared/data, which is not here")
    results = list(findings(recipe, offline=True))
    assert [f for f in results if not f.ok] == []
    assert [f.name for f in results if f.name.startswith("stage ")] == [
        f"stage {s.name}" for s in recipe.stage
    ]


def test_a_fake_model_has_the_architecture_the_turns_and_the_switch(tmp_path: Path):
    for name, family, bias, norm in (
        ("Qwen/Qwen3-0.6B", "qwen3", False, True),
        ("Qwen/Qwen2.5-1.5B-Instruct", "qwen2", True, False),
    ):
        where = fake_hub.fake_model(name, tmp_path / family)
        model, chat = pretrained.load(where), Chat.load(where)
        assert isinstance(model, Transformer)
        assert (
            model.config.family,
            model.config.qkv_bias,
            model.config.qk_norm,
            model.config.tied,
        ) == (
            family,
            bias,
            norm,
            True,
        )
        assert (
            model.config.heads > model.config.kv_heads
            and sum(p.numel() for p in model.parameters()) < 100_000
        )
        prompt = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<|im_end|> 2+2?"},
        ]
        text = "".join(
            chat.pieces(chat.render(prompt, thinking=False if family == "qwen3" else None))
        )
        begun = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
        assert text == (
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            f"<|im_start|>user\n<|im_end|> 2+2?<|im_end|>\n<|im_start|>assistant\n{begun}"
        )
        assert (
            chat.render(prompt).count(chat.special["<|im_end|>"]) == 2
        )  # what a message spells out stays text
        assert chat.turn_end == chat.special["<|im_end|>"]


def test_a_fake_reward_model_tells_answers_apart(tmp_path: Path):
    model = value_head.load(
        fake_hub.fake_model("Skywork/Skywork-Reward-V2-Qwen3-0.6B", tmp_path / "rm", scalar=True)
    )
    one, two = value_head.score(model, [[1, 2, 3], [4, 5]])
    assert one != two


def test_real_shapes_have_the_real_number_of_parameters():
    from whet.preflight.memory import parameters

    sizes = {
        "Qwen/Qwen3-0.6B": 0.596e9,
        "Qwen/Qwen3-1.7B": 1.72e9,
        "Qwen/Qwen2.5-1.5B": 1.544e9,
        "Qwen/Qwen2.5-0.5B": 0.494e9,
    }
    for name, size in sizes.items():
        assert parameters(fake_hub.real_shape(name)) == pytest.approx(size, rel=2e-3)


def test_a_model_without_a_fake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ModelError, match="offline only"):
        fake_hub.real_shape("meta-llama/Llama-3.1-8B")
    path = tmp_path / "r.toml"
    path.write_text(
        'name = "r"\nmodel = { path = "some/Mistral-7B" }\ntask = { name = "hf:openai/gsm8k" }\n'
        '[[stage]]\nkind = "rl"\nname = "rl"\nsteps = 3\n'
    )
    assert main(["check", str(path), "--offline"]) == 1
    assert "FAIL recipe  some/Mistral-7B: offline only" in capsys.readouterr().out


def test_a_stage_that_cannot_go_on_is_found_and_those_behind_it_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
):
    from whet.stages import reject

    def nothing(*_: object) -> None:
        raise DataError("nothing was kept")

    monkeypatch.setattr(reject, "run", nothing)
    recipe = load_recipe(RECIPES[0].with_name("r1-zero-mini.toml"))
    results = list(findings(recipe))
    assert (results[-1].name, results[-1].ok, results[-1].message) == (
        "stage verified",
        False,
        "nothing was kept",
    )


def test_shrink_keeps_what_matters_and_shrinks_the_rest():
    recipe = dry_run.shrink(load_recipe(RECIPES[0].with_name("r1.toml")))
    cold, reasoning, verified, again, aligned = recipe.stage
    assert (
        isinstance(reasoning, config.RL)
        and isinstance(verified, config.Reject)
        and isinstance(aligned, config.RL)
    )
    assert (reasoning.steps, reasoning.prompts, reasoning.samples, reasoning.max_tokens) == (
        2,
        2,
        4,
        dry_run.LENGTH,
    )
    assert (
        verified.per_prompt == 2
        and verified.problems == 8
        and [r.name for r in reasoning.reward] == ["task", "format", "language"]
    )
    assert (
        getattr(again, "shares", None) == {"verified": 0.75, "corpus": 0.25}
        and getattr(cold, "only", None) == "traces"
    )


def test_a_critics_warm_up_is_left_out():
    recipe = load_recipe(RECIPES[0].with_name("oreal-mini.toml"))
    stages = [s for s in dry_run.shrink(recipe).stage if isinstance(s, config.RL)]
    assert stages and all(s.override["warmup"] == 0 for s in stages)


def test_a_stage_without_a_probe_is_shrunk_without_one():
    recipe = load_recipe(RECIPES[0])
    stages = [
        s.model_copy(update={"probe": 0}) if isinstance(s, config.RL) else s for s in recipe.stage
    ]
    shrunk = dry_run.shrink(recipe.model_copy(update={"stage": stages})).stage
    looked = [rl.refuse(s) for s in shrunk if isinstance(s, config.RL)]
    assert looked and all(s.probe == 0 for s in shrunk if isinstance(s, config.RL))
