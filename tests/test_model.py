"""The decoder against transformers', both ways round, on tiny random checkpoints of every family;
and packs.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from whet.errors import ModelError
from whet.model import pretrained, weights
from whet.model.config import ModelConfig
from whet.model.rope import frequencies
from whet.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

VOCAB = 67
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 96,
    "rope_theta": 1e4,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama 3.1": ("Llama", {"head_dim": 32, "rope_parameters": LLAMA3 | {"rope_theta": 1e4}}),
    "llama linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    ),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 10}),
    "smollm2": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
        },
    ),
    "qwen2 free": ("Qwen2", {}),
    "qwen2.5 tied": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "r1-distill yarn": ("Qwen2", {"hidden_size": 128, "rope_parameters": YARN}),
    "yarn, all set": (
        "Qwen3",
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 512,
                "rope_theta": 20.0,
                "beta_fast": 6.0,
                "beta_slow": 2.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
            },
        },
    ),
    "yarn, untruncated": (
        "Qwen3",
        {
            "head_dim": 32,
            "rope_parameters": YARN
            | {"truncate": False, "attention_factor": 1.3, "original_max_position_embeddings": 512},
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "qwen3 tied, biases": (
        "Qwen3",
        {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "smollm3 list": ("SmolLM3", {"no_rope_layers": [0, 1, 0]}),
}
LENGTHS = (5, 1, 190, 23)  # beyond every range above, and max_position_embeddings itself


def theirs(case: str) -> Any:
    """A random model of transformers' whose every weight matters, norms and biases included."""
    name, more = CASES[case]
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**SHAPE | more)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.15 + (1.0 if p.ndim == 1 and (p == 1).all() else 0.0))
    return model


def pack(lengths: tuple[int, ...] = LENGTHS, vocab: int = VOCAB) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(0, vocab, (sum(lengths),), generator=torch.Generator().manual_seed(5))
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return tokens, torch.cat([torch.arange(n) for n in lengths]), starts


def ours_of(model: Any, lengths: tuple[int, ...] = LENGTHS, start: int = 0) -> Tensor:
    tokens, positions, starts = pack(lengths)
    return model.logits(model.packed(tokens, positions + start, starts))


def theirs_of(model: Any, lengths: tuple[int, ...] = LENGTHS, start: int = 0) -> Tensor:
    """Each segment alone, as transformers reads it."""
    tokens, positions, _ = pack(lengths)
    ends = zip(tokens.split(lengths), positions.split(lengths), strict=True)
    return torch.cat(
        [model(input_ids=t[None], position_ids=p[None] + start).logits[0] for t, p in ends]
    )


def loaded(directory: Path) -> Transformer:
    model = pretrained.load(str(directory))
    assert isinstance(model, Transformer)
    return model


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_transformers_writes_and_whet_reads(case: str, tmp_path: Path) -> None:
    hf = theirs(case)
    hf.save_pretrained(tmp_path, max_shard_size="20KB" if "3" in case else "5GB")
    model = loaded(tmp_path)
    expected = theirs_of(hf)
    assert expected.abs().max() > 0.5
    assert (ours_of(model) - expected).abs().max() < 5e-5
    assert (ours_of(model, (7, 3), 100_000) - theirs_of(hf, (7, 3), 100_000)).abs().max() < 5e-5
    assert (model.head.weight is model.embed.weight) == hf.config.tie_word_embeddings
    assert model.config.eos == (2,) and model.config.bos == 1 and model.config.pad == 0


@pytest.mark.parametrize(
    "case", ["llama 3.1", "llama linear", "r1-distill yarn", "smollm2", "smollm3", "qwen3"]
)
@torch.no_grad()
def test_the_keys_of_transformers_before_version_5(case: str, tmp_path: Path) -> None:
    hf = theirs(case)
    hf.save_pretrained(tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    table = held.pop("rope_parameters")
    held["rope_theta"] = table.pop("rope_theta")
    kind = table.pop("rope_type")
    held["rope_scaling"] = None if kind == "default" else {"type": kind, **table}
    held["torch_dtype"] = held.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(held))
    assert (ours_of(loaded(tmp_path)) - theirs_of(hf)).abs().max() < 5e-5


def greedy(model: Transformer, prompt: list[int], n: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n):
        line = torch.tensor(tokens)
        hidden = model.packed(line, torch.arange(len(line)), torch.tensor([0, len(line)]))
        tokens.append(int(model.logits(hidden[-1:]).argmax()))
        if tokens[-1] in model.config.eos:
            break
    return tokens


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_whet_writes_and_transformers_reads(case: str, tmp_path: Path) -> None:
    theirs(case).save_pretrained(tmp_path / "shape")
    config = replace(pretrained.read_config(tmp_path / "shape"), eos=(2, 5))
    model = Transformer(config).initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.15)
    pretrained.save(
        model, tmp_path / "saved", shard_bytes=30_000 if "qwen" in case else pretrained.SHARD_BYTES
    )
    assert ("qwen" in case) == (tmp_path / "saved" / weights.INDEX).exists()
    hf, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert type(hf).__name__ == f"{CASES[case][0]}ForCausalLM" and not any(report.values())
    assert (theirs_of(hf) - ours_of(model)).abs().max() < 5e-5
    for prompt in ([1, 9, 33], [1, *range(10, 60)]):
        out = hf.generate(torch.tensor([prompt]), max_new_tokens=15, do_sample=False)[0].tolist()
        assert out == greedy(model, prompt, 15)
    again = loaded(tmp_path / "saved")
    assert again.config == model.config
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )


def test_defaults_where_config_json_is_silent(tmp_path: Path) -> None:
    for name in ("Llama", "Qwen2", "Qwen3", "SmolLM3"):
        config = getattr(transformers, f"{name}Config")
        kind = config.model_type
        bare = {
            "vocab_size": 67,
            "hidden_size": 64,
            "num_hidden_layers": 5,
            "intermediate_size": 48,
        }
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": kind, "num_attention_heads": 32} | bare)
        )
        ours = pretrained.read_config(tmp_path)
        full = config(**bare, num_attention_heads=32)
        assert ours.rope_theta == full.rope_parameters["rope_theta"]
        assert ours.kv_heads == full.num_key_value_heads
        assert ours.head_dim == getattr(full, "head_dim", 64 // 32)
        assert ours.tied == full.tie_word_embeddings and ours.norm_eps == full.rms_norm_eps
        assert ours.max_positions == full.max_position_embeddings
        uses = getattr(full, "no_rope_layers", None) or [1] * 5
        assert ours.no_rope_layers == tuple(i for i, u in enumerate(uses) if not u)
        assert ours.eos == () and ours.bos is None


@pytest.mark.parametrize("head_dim", [{}, {"head_dim": None}])
@torch.no_grad()
def test_head_dim_absent_or_null(head_dim: dict[str, None], tmp_path: Path) -> None:
    hf = theirs("llama")
    hf.save_pretrained(tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    held.pop("head_dim", None)
    (tmp_path / "config.json").write_text(json.dumps(held | head_dim))
    model = loaded(tmp_path)
    assert model.config.head_dim == 8
    assert (ours_of(model) - theirs_of(hf)).abs().max() < 5e-5


def tiny(**more: Any) -> Transformer:
    config = ModelConfig("qwen3", VOCAB, 32, 2, 4, 2, 12, 48, qk_norm=True)
    model = Transformer(replace(config, **more)).initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.ndim > 1 else 1)
    return model


@torch.no_grad()
def test_a_pack_is_each_of_its_segments_alone() -> None:
    model, (tokens, positions, starts) = tiny(), pack((3, 40, 1, 39, 41, 8))
    together = model.packed(tokens, positions, starts)
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        alone = model.packed(tokens[a:b], positions[a:b], torch.tensor([0, b - a]))
        assert (together[a:b] - alone).abs().max() < 5e-5


def test_what_is_not_a_number_stays_in_its_segment() -> None:
    model, lengths = tiny(), (9, 10, 8)  # near enough to be attended to side by side
    tokens = torch.cat([torch.arange(1, 10), torch.tensor([0] * 10), torch.arange(2, 10)])
    _, positions, starts = pack(lengths)
    with torch.no_grad():
        clean = model.packed(tokens, positions, starts)
        model.embed.weight[0] = torch.nan
        hidden = model.packed(tokens, positions, starts)
    other = torch.ones(27, dtype=torch.bool)
    other[9:19] = False
    assert hidden[9:19].isnan().all() and torch.equal(hidden[other], clean[other])


def test_frequencies_stay_exact_when_the_model_is_cast() -> None:
    model = tiny(rope_theta=1e6)
    exact = model.rotary.frequencies.clone()
    cast(Any, model).to(torch.bfloat16).to(torch.float32)
    assert torch.equal(model.rotary.frequencies, exact) and exact.dtype == torch.float32
    assert torch.equal(model.bfloat16().rotary.frequencies, exact)
    with torch.device("meta"):
        assert torch.equal(Transformer(model.config).rotary.frequencies, exact)


def test_yarn_without_a_factor_stretches_to_max_positions() -> None:
    config = ModelConfig("qwen2", VOCAB, 32, 1, 4, 2, 8, 48, max_positions=320)
    table: dict[str, Any] = {
        "rope_type": "yarn",
        "original_max_position_embeddings": 64,
        "factor": None,
    }
    (a, x), (b, y) = (
        frequencies(replace(config, rope_scaling=table | f)) for f in ({}, {"factor": 5.0})
    )
    assert torch.equal(a, b) and x == y > 1


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "rope type 'longrope' is not supported"),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope type 'dynamic' is not supported"),
        ({"rope_type": "linear"}, "needs factor, a positive number; it is None"),
        ({"type": "linear", "factor": "2"}, "needs factor, a positive number; it is '2'"),
        ({"rope_type": "linear", "factor": True}, "it is True"),
        ({"rope_type": "linear", "factor": 0}, "it is 0"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor 4.0 is not below"),
        (LLAMA3 | {"high_freq_factor": None}, "needs high_freq_factor"),
    ],
)
def test_scalings_that_make_no_sense(scaling: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as failure:
        frequencies(ModelConfig("llama", VOCAB, 32, 1, 4, 2, 8, 48, rope_scaling=scaling))
    assert "\n" not in str(failure.value)
