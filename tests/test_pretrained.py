"""Directories of models: what is found, refused, written whole, and kept as it was. No transformers
needed.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from whet.errors import ModelError
from whet.model import pretrained, weights
from whet.model.config import ModelConfig
from whet.model.transformer import Transformer

SHAPE = ModelConfig(
    "qwen3", 37, 16, 2, 4, 2, 6, 24, qk_norm=True, max_positions=64, bos=0, eos=(1,), pad=3
)


def tiny(**more: Any) -> Transformer:
    return Transformer(replace(SHAPE, **more)).initialize(torch.Generator().manual_seed(0))


def edit(directory: Path, name: str = "config.json", **changes: Any) -> None:
    held = json.loads((directory / name).read_text()) | changes
    (directory / name).write_text(json.dumps({k: v for k, v in held.items() if v is not ...}))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pretrained.save(tiny(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    pretrained.save(tiny(), tmp_path / "model", shard_bytes=4_000)
    return tmp_path / "model"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as failure:
        call()
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_shards_stay_below_the_limit_and_the_index_names_every_tensor(sharded: Path) -> None:
    index = json.loads((sharded / weights.INDEX).read_text())
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    total = 0
    for file in files:
        held = load_file(file)
        assert all(index["weight_map"][name] == file.name for name in held)
        size = sum(t.numel() * t.element_size() for t in held.values())
        assert size <= 4_000 or len(held) == 1
        total += size
    parameters = list(tiny().parameters())
    assert index["metadata"]["total_size"] == total == 4 * sum(p.numel() for p in parameters)
    assert all(
        torch.equal(a, b)
        for a, b in zip(pretrained.load(str(sharded)).parameters(), parameters, strict=True)
    )


def test_loading_in_another_format(model: Path) -> None:
    half = pretrained.load(str(model), dtype=torch.bfloat16)
    assert isinstance(half, Transformer)
    for a, b in zip(half.parameters(), tiny().parameters(), strict=True):
        assert a.dtype == torch.bfloat16 and torch.equal(a, b.bfloat16()) and a.requires_grad
    assert torch.equal(half.rotary.frequencies, tiny().rotary.frequencies)
    pretrained.save(half, model)
    assert json.loads((model / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_file(model / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_a_tied_model_stays_tied(model: Path) -> None:
    loaded = pretrained.load(str(model))
    assert isinstance(loaded, Transformer) and loaded.head.weight is loaded.embed.weight
    assert "lm_head.weight" not in load_file(model / "model.safetensors")


def test_a_copy_of_the_embeddings_as_tied_head_is_allowed_and_another_head_is_not(
    model: Path,
) -> None:
    held = load_file(model / "model.safetensors")
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    held["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)  # old checkpoints have it
    save_file(held, model / "model.safetensors")
    pretrained.load(str(model))
    held["lm_head.weight"][0, 0] += 1
    save_file(held, model / "model.safetensors")
    assert "set tie_word_embeddings to false" in refusal(lambda: pretrained.load(str(model)))


def test_unknown_keys_are_kept(model: Path, tmp_path: Path) -> None:
    edit(
        model,
        initializer_range=0.01,
        use_cache=False,
        my_key={"a": [1]},
        sliding_window=4096,
        auto_map={"x": "y"},
    )
    edit(model, "generation_config.json", temperature=0.6, eos_token_id=[7, 1], top_k=20)
    loaded = pretrained.load(str(model))
    assert loaded.config.eos == (7, 1)
    pretrained.save(loaded, tmp_path / "again")
    held = json.loads((tmp_path / "again/config.json").read_text())
    assert (held["my_key"], held["initializer_range"], held["sliding_window"]) == (
        {"a": [1]},
        0.01,
        4096,
    )
    assert "auto_map" not in held  # it would name code that is not there
    generation = json.loads((tmp_path / "again/generation_config.json").read_text())
    assert generation == {
        "bos_token_id": 0,
        "eos_token_id": [7, 1],
        "pad_token_id": 3,
        "temperature": 0.6,
        "top_k": 20,
    }


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(5, None, (5,)), ([5, 6], 6, (6, 5)), (None, [9], (9,)), (..., ..., ()), (-1, 4, (4,))],
)
def test_ends_are_those_of_both_files(
    model: Path, config: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    edit(model, eos_token_id=config)
    edit(model, "generation_config.json", eos_token_id=generation)
    assert pretrained.read_config(model).eos == expected


def test_no_generation_config(model: Path) -> None:
    (model / "generation_config.json").unlink()
    assert pretrained.read_config(model).eos == (1,)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_what_a_directory_can_lack(model: Path) -> None:
    config = (model / "config.json").read_bytes()
    cut(model / "model.safetensors")
    assert "broken or cut short" in refusal(lambda: pretrained.load(str(model)))
    (model / "model.safetensors").write_bytes(b"")
    assert "broken or cut short" in refusal(lambda: pretrained.load(str(model)))
    (model / "model.safetensors").unlink()
    assert "it holds no weights" in refusal(lambda: pretrained.load(str(model)))
    (model / "config.json").write_bytes(config[: len(config) // 2])
    assert "not valid JSON" in refusal(lambda: pretrained.load(str(model)))
    (model / "config.json").write_bytes(b"[1]")
    assert "does not hold a JSON object" in refusal(lambda: pretrained.load(str(model)))
    (model / "config.json").write_bytes(b"\xff\xfe")
    assert "not valid JSON" in refusal(lambda: pretrained.load(str(model)))
    (model / "config.json").write_bytes(b"[" * 100_000)
    assert "not valid JSON" in refusal(lambda: pretrained.load(str(model)))
    (model / "config.json").unlink()
    assert "has no config.json" in refusal(lambda: pretrained.load(str(model)))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trap-was-sprung",)


def test_pickled_weights_are_never_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "only pickled weights (pytorch_model.bin)" in refusal(
        lambda: pretrained.load(str(model))
    )
    assert not (model / "trap-was-sprung").exists()


def test_broken_shards(sharded: Path) -> None:
    last = max(sharded.glob("*.safetensors"))
    whole = last.read_bytes()
    cut(last)
    assert last.name in refusal(lambda: pretrained.load(str(sharded)))
    last.unlink()
    assert f"{last.name} is missing" in refusal(lambda: pretrained.load(str(sharded)))
    last.write_bytes(whole)
    pretrained.load(str(sharded))
    for names in ({}, {"a": "../../other.safetensors"}, {"a": 3}, {"a": "/etc/passwd"}, [1]):
        edit(sharded, weights.INDEX, weight_map=names)
        assert "no weight_map" in refusal(lambda: pretrained.load(str(sharded)))


def test_tensors_that_do_not_fit(model: Path) -> None:
    file = model / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file({k: v for k, v in whole.items() if k != name}, file)
    assert f"lacks {name}" in refusal(lambda: pretrained.load(str(model)))
    save_file(whole | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(24)}, file)
    assert "holds model.layers.0.self_attn.q_proj.bias" in refusal(
        lambda: pretrained.load(str(model))
    )
    save_file(whole | {name: torch.zeros(16, 12)}, file)
    assert "has shape [16, 12]; config.json calls for [12, 16]" in refusal(
        lambda: pretrained.load(str(model))
    )
    save_file(whole | {name: torch.zeros(12, 16, dtype=torch.int8)}, file)
    assert "unquantized weights only" in refusal(lambda: pretrained.load(str(model)))
    save_file(whole, file)
    edit(model, num_hidden_layers=3)
    assert "lacks model.layers.2" in refusal(lambda: pretrained.load(str(model)))
    edit(model, num_hidden_layers=1)
    assert "holds model.layers.1" in refusal(lambda: pretrained.load(str(model)))
    edit(model, num_hidden_layers=2, vocab_size=10**12)
    assert "config.json calls for [1000000000000, 16]" in refusal(
        lambda: pretrained.load(str(model))
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_sliding_window": True, "sliding_window": 16}, "sliding window"),
        (
            {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
            "sliding window",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"num_experts": 8}, "num_experts is 8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "silu only"),
        ({"partial_rotary_factor": 0.5}, "whole heads"),
        (
            {"rope_scaling": {"type": "su", "factor": 2.0}},
            "rope type 'su' is not supported; known: default, linear",
        ),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "must be a name"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "differ by layer"),
        ({"rope_scaling": "yarn"}, "differ by layer"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"model_type": ...}, "names no model_type"),
        ({"vocab_size": ...}, "vocab_size is None; it must be a whole number above 0"),
        ({"hidden_size": "16"}, "hidden_size is '16'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"head_dim": 5}, "even head_dim (5)"),
        ({"head_dim": None, "num_attention_heads": 6}, "give head_dim"),
        ({"tie_word_embeddings": "yes"}, "must be true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers is [1]"),
    ],
)
def test_configurations_that_are_refused(model: Path, changes: dict[str, Any], words: str) -> None:
    edit(model, **changes)
    assert words in refusal(lambda: pretrained.load(str(model)))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 1,
        },  # as Qwen's own files have it
        {
            "use_sliding_window": True,
            "sliding_window": 4096,
            "max_window_layers": 2,
        },  # no layer is above
        {"layer_types": ["full_attention"] * 2, "num_experts": 0, "attn_logit_softcapping": None},
    ],
)
def test_configurations_that_only_look_foreign(model: Path, changes: dict[str, Any]) -> None:
    edit(model, **changes)
    pretrained.load(str(model))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"family": "llama"}, "a llama in Hugging Face's format cannot have qk_norm=True"),
        ({"family": "mistral"}, "family 'mistral' is not one of"),
        ({"qkv_bias": True}, "cannot have qkv_bias=True, out_bias=False"),
        ({"mlp_bias": True}, "cannot have mlp_bias=True"),
        ({"no_rope_layers": (1,)}, r"cannot have no_rope_layers=(1,)"),
    ],
)
def test_what_the_format_cannot_say_is_not_written(
    tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    assert words in refusal(lambda: pretrained.save(tiny(**more), tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


def test_importing_the_hub_is_lean() -> None:
    program = "import sys, whet.model.pretrained, whet.model.huggingface; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"transformers", "huggingface_hub", "safetensors"} & set(loaded)
