"""Models of transformers' behind whet's words, on tiny random checkpoints: the same numbers as
transformers' own.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from whet.errors import ModelError
from whet.model import pretrained
from whet.model.huggingface import HuggingFaceModel

transformers = pytest.importorskip("transformers")

VOCAB = 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": [2, 4],
    "pad_token_id": 0,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # softcaps so low that they bend what they touch; a window shorter than the segments
    "gemma2": (
        "Gemma2",
        {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5, "sliding_window": 6},
    ),
    "gemma3": (
        "Gemma3",
        {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "granite": ("Granite", {"logits_scaling": 7.0, "embedding_multiplier": 3.0, "head_dim": 8}),
    "cohere": ("Cohere", {"logit_scale": 0.3, "head_dim": 8}),
    "gpt2": ("GPT2", {"n_head": 4}),
}
LENGTHS = (4, 1, 33, 9, 10)


def theirs(case: str) -> Any:
    name, more = CASES[case]
    torch.manual_seed(2)
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(
        **SHAPE | more
    )
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(
        config
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2)
    return model


def pack() -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(0, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(5))
    return (
        tokens,
        torch.cat([torch.arange(n) for n in LENGTHS]),
        torch.tensor([0, *LENGTHS]).cumsum(0),
    )


def alone(model: Any) -> Tensor:
    return torch.cat([model(input_ids=t[None]).logits[0] for t in pack()[0].split(LENGTHS)])


def adapted(directory: Path) -> HuggingFaceModel:
    model = pretrained.load(str(directory))
    assert isinstance(model, HuggingFaceModel)
    return model


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_ragged_packs_give_the_models_own_logits(case: str, tmp_path: Path) -> None:
    hf = theirs(case)
    hf.save_pretrained(tmp_path)
    model = adapted(tmp_path)
    assert (model.logits(model.packed(*pack())) - alone(hf)).abs().max() < 1e-5
    c = model.config
    assert (c.vocab, c.hidden, c.layers, c.heads, c.eos, c.bos, c.pad) == (
        VOCAB,
        32,
        2,
        4,
        (2, 4),
        1,
        0,
    )


@pytest.mark.parametrize("case", ["gemma2", "gemma3"])
def test_the_gradient_is_the_models_own(case: str, tmp_path: Path) -> None:
    hf = theirs(case)
    hf.save_pretrained(tmp_path)
    model = adapted(tmp_path)
    weight = torch.randn(sum(LENGTHS), VOCAB)
    (model.logits(model.packed(*pack())) * weight).sum().backward()
    (alone(hf) * weight).sum().backward()
    expected = dict(hf.named_parameters())
    for name, p in model.hf.named_parameters():
        assert p.grad is not None and expected[name].grad.abs().max() > 0
        assert (p.grad - expected[name].grad).abs().max() < 1e-4 * expected[
            name
        ].grad.abs().max(), name


def test_save_and_load_again(tmp_path: Path) -> None:
    theirs("gemma2").save_pretrained(tmp_path / "a")
    model = adapted(tmp_path / "a")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    pretrained.save(model, tmp_path / "b", shard_bytes=20_000)
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1 and not list(
        (tmp_path / "b").glob("*.bin")
    )
    again = adapted(tmp_path / "b")
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again.logits(again.packed(*pack())), model.logits(model.packed(*pack())))
        assert (alone(again.hf) - alone(model.hf)).abs().max() == 0
    assert (
        type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")).__name__
        == "Gemma2ForCausalLM"
    )


def test_parameters_are_named_once_and_dropout_stays_off(tmp_path: Path) -> None:
    hf = theirs("gpt2")
    hf.config.resid_pdrop = hf.config.attn_pdrop = hf.config.embd_pdrop = 0.5
    hf.save_pretrained(tmp_path)
    model = adapted(tmp_path).train()
    assert all(name.startswith("hf.") for name in model.state_dict())
    assert len(list(model.parameters())) == len(list(model.hf.parameters()))
    with torch.no_grad():
        assert torch.equal(model.packed(*pack()), model.packed(*pack()))


def test_loading_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    theirs("gemma2").save_pretrained(tmp_path)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    adapted(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def refusal(directory: Path) -> str:
    with pytest.raises(ModelError) as failure:
        pretrained.load(str(directory))
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_what_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs("gemma2").save_pretrained(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, text = load_file(file), config.read_text()
    save_file(
        {k: v for k, v in whole.items() if "layers.1.mlp.up" not in k},
        file,
        metadata={"format": "pt"},
    )
    assert "lacks model.layers.1.mlp.up_proj.weight" in refusal(tmp_path)
    wrong = whole | {"model.norm.weight": torch.zeros(31)}
    save_file(wrong, file, metadata={"format": "pt"})
    assert "lacks model.norm.weight in the right shape" in refusal(tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    assert "broken or cut short" in refusal(tmp_path)
    file.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "only pickled weights" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    save_file(whole, file, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(text) | {"quantization_config": {"bits": 4}}))
    assert "is quantized" in refusal(tmp_path)
    config.write_text(json.dumps(json.loads(text) | {"model_type": "perceptron"}))
    assert "is a perceptron, which transformers cannot load" in refusal(tmp_path)
    config.write_text(json.dumps(json.loads(text) | {"hidden_size": "wide"}))
    assert "cannot load" in refusal(tmp_path)


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    theirs("gemma2").save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('sprung').touch()")
    held = json.loads((tmp_path / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(
        json.dumps(held | {"model_type": "evil", "auto_map": auto})
    )
    assert "is a evil, which transformers cannot load" in refusal(tmp_path)
    assert not Path("sprung").exists() and "evil" not in sys.modules


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'whet[hf]'" in refusal(tmp_path)


def test_a_head_that_whet_does_not_know_is_refused() -> None:
    hf = theirs("gemma2")
    hf.config.final_logit_softcapping = 1.5
    model = HuggingFaceModel(hf, hub_config(hf))
    assert model.softcap == 1.5
    forward = hf.forward
    hf.forward = lambda **named: doubled(forward(**named))
    with pytest.raises(ModelError, match="does not know how a gemma2 makes its logits"):
        HuggingFaceModel(hf, hub_config(hf))


def hub_config(hf: Any) -> Any:
    from whet.model.config import ModelConfig

    return ModelConfig(hf.config.model_type, VOCAB, 32, 2, 4, 2, 12, 48)


def doubled(out: Any) -> Any:
    out.logits = out.logits * 2
    return out
