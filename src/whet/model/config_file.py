"""config.json and generation_config.json of a Hugging Face directory, to and from a ModelConfig."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.errors import ModelError
from whet.model.config import ModelConfig
from whet.model.rope import frequencies

Json = dict[str, Any]

CONFIG, GENERATION = "config.json", "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Family:
    """The defaults of Hugging Face's class of a `model_type`, for keys that config.json lacks."""

    architecture: str
    qk_norm: bool = False
    qkv_bias: bool | None = None  # None: attention_bias, on the output projection too
    mlp_bias: bool | None = False  # None: the key mlp_bias
    rope_theta: float = 10_000.0
    tied: bool = False
    head_dim: int | None = None  # None: hidden / heads
    kv_heads: int | None = None  # None: as many as heads
    max_positions: int = 32_768
    no_rope: bool = False  # whether it may have layers without rotary positions


FAMILIES = {
    "llama": Family("LlamaForCausalLM", mlp_bias=None, max_positions=2048),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, kv_heads=32),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, kv_heads=32, head_dim=128),
    "smollm3": Family(
        "SmolLM3ForCausalLM", mlp_bias=None, rope_theta=2e6, tied=True, kv_heads=4, no_rope=True
    ),
}
# Keys of config.json that are fields of a ModelConfig, or that are made anew when it is written.
READ = {
    "model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "hidden_act",
    "rms_norm_eps", "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "original_max_position_embeddings", "no_rope_layers", "no_rope_layer_interval",
    "attention_bias", "mlp_bias", "tie_word_embeddings", *IDS, "dtype", "torch_dtype",
    "transformers_version", "auto_map", "num_labels", "id2label", "label2id",
}  # fmt: skip
SCALAR = "SequenceClassification"  # the end of a reward model's architecture
# Keys that change the maths in ways the decoder lacks; absent, null, 0 and false are harmless.
FOREIGN = (
    "attn_logit_softcapping", "final_logit_softcapping", "num_local_experts", "num_experts",
    "n_routed_experts", "quantization_config", "logit_scale", "logits_scaling",
    "residual_multiplier", "embedding_multiplier", "alibi",
)  # fmt: skip


def read_json(path: Path) -> Json:
    """Reads a JSON object. Raises ModelError where the file is missing, broken or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} has no {path.name}; it is not a model in Hugging Face's format"
        ) from None
    except OSError as failure:
        raise ModelError(f"{path} cannot be read: {failure.strerror}") from None
    except (ValueError, RecursionError) as failure:
        raise ModelError(f"{path} is not valid JSON ({failure}); is it half-written?") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return value


def model_type(directory: Path) -> str:
    """Returns the family of a directory's model. Raises ModelError where config.json names none."""
    value = read_json(directory / CONFIG).get("model_type")
    if not isinstance(value, str) or not value:
        raise ModelError(f"{directory / CONFIG} names no model_type (llama, qwen2, qwen3, …)")
    return value


def read_config(directory: Path) -> ModelConfig:
    """Reads the shape of a directory's model, which must be of one of FAMILIES.

    End-of-sequence ids are those of generation_config.json and config.json together. Raises
    ModelError where a file is missing or broken, a value makes no sense, or the model has a feature
    that the decoder lacks.
    """
    raw = read_json(directory / CONFIG)
    name = model_type(directory)
    if name not in FAMILIES:
        raise ModelError(
            f"model_type {name!r} is not one of the decoder's own; known: {', '.join(FAMILIES)}"
        )
    generation = read_json(directory / GENERATION) if (directory / GENERATION).exists() else {}
    try:
        return _config(name, raw, generation)
    except ModelError as failure:
        raise ModelError(f"{directory / CONFIG}: {failure}") from None


def _config(name: str, raw: Json, generation: Json) -> ModelConfig:
    family = FAMILIES[name]
    _refuse_foreign(raw)
    hidden, heads, layers = (
        _count(raw, k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    kv_heads = _count(raw, "num_key_value_heads", family.kv_heads or heads, heads)
    if heads % kv_heads:
        raise ModelError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    bias = _flag(raw, "attention_bias", False)
    positions = _count(raw, "max_position_embeddings", family.max_positions)
    theta, scaling = _rope(raw, family, positions)
    ends = (*_ids(generation, "eos_token_id"), *_ids(raw, "eos_token_id"))
    config = ModelConfig(
        family=name,
        vocab=_count(raw, "vocab_size"),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(raw, family, hidden, heads),
        ffn=_count(raw, "intermediate_size"),
        norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        no_rope_layers=_no_rope(raw, layers) if family.no_rope else (),
        qk_norm=family.qk_norm,
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        out_bias=bias if family.qkv_bias is None else False,
        mlp_bias=_flag(raw, "mlp_bias", False) if family.mlp_bias is None else family.mlp_bias,
        tied=_flag(raw, "tie_word_embeddings", family.tied),
        scalar=_scalar(raw),
        max_positions=positions,
        bos=next(iter((*_ids(generation, "bos_token_id"), *_ids(raw, "bos_token_id"))), None),
        eos=tuple(dict.fromkeys(ends)),
        pad=next(iter((*_ids(generation, "pad_token_id"), *_ids(raw, "pad_token_id"))), None),
        extra={k: v for k, v in raw.items() if k not in READ},
        generation={k: v for k, v in generation.items() if k not in (*IDS, "transformers_version")},
    )
    frequencies(config)
    return config


def _scalar(raw: Json) -> bool:
    """Whether the model is a reward model: a sequence classifier with one label."""
    named = raw.get("architectures") or [""]
    if not (isinstance(named, list) and isinstance(named[0], str)):
        raise ModelError(f"architectures is {named!r}; it must be a list of names")
    if not named[0].endswith(SCALAR):
        return False
    labels = raw.get("id2label")
    count = len(labels) if isinstance(labels, dict) else raw.get("num_labels", 2)
    if count != 1:
        raise ModelError(f"it is a classifier with {count} labels; a reward model has one")
    return True


def _head_dim(raw: Json, family: Family, hidden: int, heads: int) -> int:
    if raw.get("head_dim") is not None:
        return _count(raw, "head_dim")
    if family.head_dim is not None and "head_dim" not in raw:
        return family.head_dim
    if hidden % heads:
        raise ModelError(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}; give head_dim"
        )
    return hidden // heads


def _refuse_foreign(raw: Json) -> None:
    for key in FOREIGN:
        if raw.get(key):
            raise ModelError(f"{key} is {raw[key]!r}, which whet's decoder does not compute")
    act = raw.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise ModelError(f"hidden_act is {act!r}; whet's decoder computes silu only")
    if raw.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ModelError(
            f"partial_rotary_factor is {raw['partial_rotary_factor']!r}; "
            "whet's decoder rotates whole heads only"
        )
    kinds = raw.get("layer_types") or []
    slides = bool(raw.get("use_sliding_window")) and raw.get("sliding_window") is not None
    full_below = raw.get("max_window_layers")
    if (
        slides
        and not kinds
        and isinstance(full_below, int)
        and isinstance(raw.get("num_hidden_layers"), int)
    ):
        slides = full_below < raw["num_hidden_layers"]
    if (slides and not kinds) or any(kind != "full_attention" for kind in kinds):
        raise ModelError(
            "it attends through a sliding window, which whet's decoder does not compute"
        )


def _rope(raw: Json, family: Family, positions: int) -> tuple[float, Json | None]:
    """Returns base and scaling table, from transformers 5's key (rope_parameters) or older ones."""
    table = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(table, dict) or any(isinstance(v, dict) for v in table.values()):
        raise ModelError(
            "its rotary positions differ by layer, which whet's decoder does not compute"
        )
    kind = table.get("rope_type") or table.get("type") or "default"
    if not isinstance(kind, str):
        raise ModelError(f"rope_type is {kind!r}; it must be a name")
    if table.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ModelError("partial_rotary_factor is not 1; whet's decoder rotates whole heads only")
    theta = _number({"rope_theta": raw.get("rope_theta")} | table, "rope_theta", family.rope_theta)
    if kind == "default":
        return theta, None
    rest = {
        k: v for k, v in table.items() if k not in ("type", "rope_theta", "partial_rotary_factor")
    }
    if kind in ("llama3", "yarn"):
        original = raw.get("original_max_position_embeddings")
        rest["original_max_position_embeddings"] = (
            original or rest.get("original_max_position_embeddings") or positions
        )
    return theta, rest | {"rope_type": kind}


def _no_rope(raw: Json, layers: int) -> tuple[int, ...]:
    """Returns the layers without rotary positions.

    Hugging Face's list has a 1 for each layer with them. Without a list every fourth has none.
    """
    uses = raw.get("no_rope_layers")
    if uses is None:
        every = _count(raw, "no_rope_layer_interval", 4)
        uses = [(i + 1) % every != 0 for i in range(layers)]
    if not isinstance(uses, list) or len(uses) < layers or any(u not in (0, 1) for u in uses):
        raise ModelError(
            f"no_rope_layers is {uses!r}; it must have a 0 or 1 for each of {layers} layers"
        )
    return tuple(i for i in range(layers) if not uses[i])


def config_json(config: ModelConfig, dtype: str) -> Json:
    """Returns the content of config.json, in keys that every version of transformers reads.

    Raises ModelError for a config that the family cannot have, for a reader would compute another
    model.
    """
    c = config
    if c.family not in FAMILIES:
        raise ModelError(
            f"family {c.family!r} is not one of the decoder's own; known: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[c.family]
    attention = (c.qkv_bias, c.out_bias)
    if attention not in (
        [(False, False), (True, True)] if family.qkv_bias is None else [(family.qkv_bias, False)]
    ):
        raise ModelError(
            f"a {c.family} in Hugging Face's format cannot have qkv_bias={c.qkv_bias}, "
            f"out_bias={c.out_bias}"
        )
    for key, value, can in (
        ("qk_norm", c.qk_norm, c.qk_norm == family.qk_norm),
        ("mlp_bias", c.mlp_bias, family.mlp_bias is None or c.mlp_bias == family.mlp_bias),
        ("no_rope_layers", c.no_rope_layers, family.no_rope or not c.no_rope_layers),
    ):
        if not can:
            raise ModelError(f"a {c.family} in Hugging Face's format cannot have {key}={value}")
    raw: Json = {
        "architectures": [
            family.architecture.replace("CausalLM", SCALAR) if c.scalar else family.architecture
        ],
        "model_type": c.family,
        "dtype": dtype,
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": c.rope_scaling,
        "attention_bias": c.qkv_bias and c.out_bias,
        "mlp_bias": c.mlp_bias,
        "tie_word_embeddings": c.tied,
        "max_position_embeddings": c.max_positions,
    }
    if family.no_rope:
        raw["no_rope_layers"] = [int(i not in c.no_rope_layers) for i in range(c.layers)]
    if c.scalar:
        raw |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return raw | _special(c) | {k: v for k, v in c.extra.items() if k not in READ}


def generation_json(config: ModelConfig) -> Json:
    """Returns the content of generation_config.json."""
    return {k: v for k, v in _special(config).items() if v is not None} | config.generation


def _special(config: ModelConfig) -> Json:
    eos = config.eos[0] if len(config.eos) == 1 else list(config.eos) or None
    return {"bos_token_id": config.bos, "eos_token_id": eos, "pad_token_id": config.pad}


def _count(raw: Json, key: str, absent: int | None = None, null: int | None = None) -> int:
    """Reads a positive whole number; `absent` replaces a missing key, `null` a null."""
    value = raw.get(key, absent)
    if value is None and key in raw:
        value = null or absent
    if type(value) is not int or value < 1:
        raise ModelError(f"{key} is {value!r}; it must be a whole number above 0")
    return value


def _number(raw: Json, key: str, default: float) -> float:
    value = default if raw.get(key) is None else raw[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ModelError(f"{key} is {value!r}; it must be a number above 0")
    return value


def _flag(raw: Json, key: str, default: bool) -> bool:
    value = default if raw.get(key) is None else raw[key]
    if not isinstance(value, bool):
        raise ModelError(f"{key} is {value!r}; it must be true or false")
    return value


def _ids(raw: Json, key: str) -> list[int]:
    value = raw.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(i) is int for i in ids):
        raise ModelError(f"{key} is {value!r}; it must be a token id or a list of them")
    return [i for i in ids if i >= 0]  # some configurations say -1 for "none"
