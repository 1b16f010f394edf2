"""Adapters on disk: PEFT's format both ways, what a run leaves, how it is read again, and what is
refused.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from whet import config
from whet.chat import Chat
from whet.cli.main import main
from whet.config.load import load_recipe
from whet.errors import ModelError, RecipeError
from whet.model import lora, lora_files, pretrained
from whet.preflight.check import findings
from whet.storage.atomic import committed

from .test_lora import SOME, grown, logps, tiny

RECIPE = """
name = "low"

[task]
name = "chain"
operations = 1

[model.shape]
family = "{family}"
hidden = 32
layers = 2
heads = 4
kv_heads = 2
ffn = 48

[evaluation]
problems = 20
max_tokens = 8

[[stage]]
name = "base"
kind = "sft"
mix = {{ direct = 1.0 }}
steps = 20
optimizer = {{ kind = "muon", lr = 0.02, lr_rest = 0.01 }}

[[stage]]
name = "folded"
kind = "sft"
mix = {{ direct = 1.0 }}
steps = 10
optimizer = {{ lr = 2e-2 }}
lora = {{ rank = 3, alpha = 7, targets = ["q_proj", "v_proj", "down_proj"] }}

[[stage]]
name = "one"
kind = "rl"
algorithm = "ppo"
steps = 2
prompts = 4
samples = 4
max_tokens = 8
probe = 0
optimizer = {{ lr = 1e-2 }}
lora = {{ rank = 4, merge = false }}

[[stage]]
name = "two"
kind = "sft"
mix = {{ direct = 1.0 }}
steps = 3
optimizer = {{ kind = "muon", lr = 1e-2 }}
lora = {{ rank = 4, merge = false }}
"""


def rewrite(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "low.toml").write_text(RECIPE.format(family="qwen2"))
    assert main(["run", str(folder / "low.toml"), "--runs", str(folder)]) == 0
    return folder


@pytest.fixture
def pair(tmp_path):
    """A base and an adapter of it, and the model that they make."""
    model = grown(tied=False).float()
    pretrained.save(tiny(tied=False).float(), tmp_path / "base")
    with committed(tmp_path / "adapter") as folder:
        lora_files.write(model, folder, "../base")
    return tmp_path, model


def refusal(call):
    with pytest.raises(ModelError) as failure:
        call()
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_what_is_written_is_pefts_format_and_is_read_again(pair):
    folder, model = pair
    held = load_file(folder / "adapter" / "adapter_model.safetensors")
    stem = "base_model.model.model.layers."
    projections = [f"self_attn.{x}_proj" for x in "qv"] + ["mlp.up_proj", "mlp.down_proj"]
    assert set(held) == {
        f"{stem}{i}.{p}.lora_{x}.weight" for i in (0, 1) for p in projections for x in "AB"
    }
    assert held[f"{stem}1.self_attn.v_proj.lora_A.weight"].shape == (3, 16)
    assert held[f"{stem}0.mlp.down_proj.lora_B.weight"].shape == (16, 3)
    told = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (told["peft_type"], told["r"], told["lora_alpha"], told["bias"]) == (
        "LORA",
        3,
        7,
        "none",
    )
    assert told["target_modules"] == ["q_proj", "v_proj", "up_proj", "down_proj"]
    again = pretrained.load(folder / "adapter")
    assert torch.equal(logps(again), logps(model)) and lora.adapted(again)
    assert not any(p.requires_grad for n, p in again.named_parameters() if ".lora_" not in n)
    lora.adapt(again, SOME)  # it trains on


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@torch.no_grad()
def test_peft_computes_the_same(tmp_path, family):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from transformers import AutoModelForCausalLM

    more = {
        "family": family,
        "tied": False,
        "qk_norm": family == "qwen3",
        "qkv_bias": family == "qwen2",
    }
    model = grown(table=config.Lora(rank=3, alpha=7), **more).float()
    pretrained.save(tiny(**more).float(), tmp_path / "base")
    with committed(tmp_path / "adapter") as folder:
        lora_files.write(model, folder, str(tmp_path / "base"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokens = torch.arange(3, 20)
    at = torch.arange(len(tokens)), torch.tensor([0, len(tokens)])
    plain = base(tokens[None]).logits[0]
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    ours = model.logits(model.packed(tokens, *at))
    assert (
        (theirs(tokens[None]).logits[0] - ours).abs().max()
        < 1e-4
        < 0.1
        < (plain - ours).abs().max()
    )
    theirs.save_pretrained(tmp_path / "again")
    again = pretrained.load(tmp_path / "again")
    assert torch.equal(again.logits(again.packed(tokens, *at)), ours)


def test_a_merged_stage_leaves_the_model_and_the_adapter(ran):
    run = ran / "low"
    merged, whole = pretrained.load(run / "folded/adapter"), pretrained.load(run / "folded/model")
    told = json.loads((run / "folded/adapter/adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "../../base/model" and told["r"] == 3
    assert not lora.adapted(whole)
    lora.merge(merged)
    assert all(
        torch.equal(p, dict(merged.named_parameters())[n]) for n, p in whole.named_parameters()
    )
    base = dict(pretrained.load(run / "base/model").named_parameters())
    changed = {n.split(".")[-2] for n, p in whole.named_parameters() if not torch.equal(p, base[n])}
    assert changed == {"qkv", "down"}


def test_an_unmerged_stage_is_its_adapter_and_the_next_trains_on(ran):
    run = ran / "low"
    for stage in ("one", "two"):
        assert (
            not (run / stage / "adapter").exists()
            and not (run / stage / "model" / "config.json").exists()
        )
        told = json.loads((run / stage / "model" / "adapter_config.json").read_text())
        assert told["base_model_name_or_path"] == "../../folded/model"
    one, two = (load_file(run / s / "model/adapter_model.safetensors") for s in ("one", "two"))
    gap = [float((one[n] - two[n]).abs().max()) for n in one if "lora_A" in n]
    start = [float(one[n].abs().max()) for n in one if "lora_A" in n]
    assert one.keys() == two.keys() and 0 < max(gap) < min(
        start
    )  # three steps from where it was, not anew


def test_a_run_can_be_moved_its_result_evaluated_and_a_stage_run_again(ran, tmp_path, capsys):
    shutil.copytree(ran / "low", tmp_path / "low")
    told = json.loads((tmp_path / "low/model/adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "../folded/model"
    capsys.readouterr()
    ask = ["--task", "chain", "operations=1", "--problems", "20", "--max-tokens", "8", "--json"]
    assert main(["eval", str(tmp_path / "low/model"), *ask]) == 0
    measured = json.loads(capsys.readouterr().out)
    summary = json.loads((tmp_path / "low/summary.json").read_text())
    assert measured["length"] == summary["stages"][-1]["length"] > 0
    before = (tmp_path / "low/two/model/adapter_model.safetensors").read_bytes()
    assert main(["run", str(ran / "low.toml"), "--runs", str(tmp_path), "--only", "two"]) == 0
    assert (tmp_path / "low/two/model/adapter_model.safetensors").read_bytes() == before
    assert (
        pretrained.load(tmp_path / "low/model").config.vocab
        == pretrained.load(tmp_path / "low/base/model").config.vocab
    )


def test_a_recipe_can_begin_with_an_adapter_without_a_tokenizer(ran, tmp_path):
    shutil.copytree(ran / "low/two/model", tmp_path / "mine")
    for path in (tmp_path / "mine").glob("*token*"):
        path.unlink()
    base = ran / "low/folded/model"
    rewrite(tmp_path / "mine/adapter_config.json", base_model_name_or_path=str(base))
    assert (
        Chat.load(pretrained.tokenizer_directory(tmp_path / "mine")).vocab == Chat.load(base).vocab
    )
    text = (
        RECIPE.format(family="qwen2").split("[model.shape]")[0]
        + f'[model]\npath = "{tmp_path / "mine"}"\n'
    )
    text += RECIPE.format(family="qwen2").split("ffn = 48")[1].split('[[stage]]\nname = "base"')[0]
    text += '[[stage]]\nname = "two"' + RECIPE.format(family="qwen2").split('name = "two"')[1]
    (tmp_path / "low.toml").write_text(text)
    told = {f.name: f for f in findings(load_recipe(tmp_path / "low.toml"))}
    assert all(f.ok for f in told.values()), [f.message for f in told.values() if not f.ok]
    assert main(["run", str(tmp_path / "low.toml"), "--runs", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "low/two/model/adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(base.resolve())
    with pytest.raises(RecipeError, match="rank 4 and alpha 32 on q_proj"):
        list(lines(tmp_path / "low.toml", "stage.two.lora.rank=5"))


def lines(path, *overrides):
    for finding in findings(load_recipe(path, overrides)):
        if not finding.ok:
            raise RecipeError(finding.message)
        yield finding


def test_check_rehearses_a_stage_with_adapters(tmp_path):
    (tmp_path / "low.toml").write_text(
        RECIPE.format(family="llama").replace(
            '[[stage]]\nname = "two"', '[[stage]]\nname = "three"'
        )
    )
    told = {f.name: f.message for f in lines(tmp_path / "low.toml")}
    assert told["stage one"].startswith("rl: ran small")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_rslora": True}, "use_rslora is True; whet reads plain LoRA only"),
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"r": 0}, "r is 0"),
        ({"r": 4}, "shape [3, 16]"),
        ({"lora_alpha": "x"}, "lora_alpha 'x'"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
        ({"base_model_name_or_path": "../nowhere"}, "no directory '../nowhere'"),
        ({"base_model_name_or_path": "."}, "is an adapter, too"),
    ],
)
def test_what_is_not_plain_lora_is_refused(pair, changes, says):
    folder, _ = pair
    rewrite(folder / "adapter" / "adapter_config.json", **changes)
    assert says in refusal(lambda: pretrained.load(folder / "adapter"))


def test_broken_files_are_refused(pair):
    folder, _ = pair
    path = folder / "adapter" / "adapter_model.safetensors"
    whole = load_file(path)
    stem = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    save_file({n: t for n, t in whole.items() if n != stem}, path)
    assert f"lacks {stem} (1 such)" in refusal(lambda: pretrained.load(folder / "adapter"))
    save_file(whole | {stem.replace("layers.1", "layers.9"): torch.zeros(3, 16)}, path)
    assert "holds base_model.model.model.layers.9" in refusal(
        lambda: pretrained.load(folder / "adapter")
    )
    save_file(whole | {stem: torch.zeros(3, 16, dtype=torch.int64)}, path)
    assert "floating-point" in refusal(lambda: pretrained.load(folder / "adapter"))
    save_file(whole | {"base_model.model.lm_head.lora_A.weight": torch.zeros(3, 16)}, path)
    assert "it adapts lm_head" in refusal(lambda: pretrained.load(folder / "adapter"))
    path.write_bytes(path.read_bytes()[:99])
    assert "broken or cut short" in refusal(lambda: pretrained.load(folder / "adapter"))
    path.rename(path.with_name("adapter_model.bin"))
    assert "only pickled weights" in refusal(lambda: pretrained.load(folder / "adapter"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ('stage.two.lora.targets=["q_prj"]', "did you mean 'q_proj'?"),
        ("stage.two.lora.targets=[]", "stage.two.lora.targets"),
        ("stage.two.lora.rang=3", "did you mean 'rank'?"),
        ("stage.two.lora.rank=0", "stage.two.lora.rank"),
        ("stage.two.lora.alpha=0", "stage.two.lora.alpha"),
        ("stage.two.start=new", "this stage makes a new one"),
        ("stage.base.lora={rank=2}", "here is none yet"),
        ("stage.two.lora.alpha=16", "one has adapters of rank 4 and alpha 32 on q_proj, k_proj"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(tmp_path, capsys, override, says):
    (tmp_path / "low.toml").write_text(RECIPE.format(family="llama"))
    assert main(["run", str(tmp_path / "low.toml"), "--runs", str(tmp_path), override]) == 2
    told = capsys.readouterr().err
    assert says in " ".join(told.split()) and not (tmp_path / "low" / "base").exists()


def test_a_reward_model_is_kept_whole_and_other_architectures_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"drop lora\.merge = false"):
        config.RewardModel(
            name="rm", kind="reward_model", data="x", steps=1, lora=config.Lora(merge=False)
        )
    transformers = pytest.importorskip("transformers")
    shape = {
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": 40,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).save_pretrained(
        tmp_path / "gpt2"
    )
    (tmp_path / "low.toml").write_text(RECIPE.format(family="llama"))
    with pytest.raises(RecipeError, match="is a gpt2; drop lora"):
        list(lines(tmp_path / "low.toml", f"stage.folded.start={tmp_path / 'gpt2'}"))
