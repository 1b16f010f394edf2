"""LoRA adapters on disk, in PEFT's format: adapter_config.json beside adapter_model.safetensors."""

import json
import os
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from whet.config.tables import PROJECTIONS, Lora
from whet.errors import ModelError
from whet.model.config_file import CONFIG as MODEL_CONFIG
from whet.model.config_file import read_json
from whet.model.lora import LoraLinear, adapt, adapted, described
from whet.model.policy import Policy
from whet.model.transformer import Transformer
from whet.model.weights import FLOATS

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, BASE = "base_model.model.", "base_model_name_or_path"
# Keys that change the maths, at the values that mean plain LoRA on linear maps.
PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "lora_bias": False,
    "trainable_token_indices": None,
}


def holds_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter in place of a whole model."""
    return (directory / CONFIG).is_file() and not (directory / MODEL_CONFIG).is_file()


def base_of(directory: Path) -> str:
    """Returns the model that an adapter was trained on: a Hub id, or a directory.

    A relative directory is relative to the adapter's. Raises ModelError where none is named.
    """
    name = read_json(directory / CONFIG).get(BASE)
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{directory / CONFIG}: {BASE} is {name!r}; it must be a directory or a Hub id"
        )
    near = directory / Path(name).expanduser()
    return os.path.normpath(near) if near.is_dir() else name


def shape_of(directory: Path) -> Lora:
    """Returns rank, alpha and targets of an adapter.

    Raises ModelError where it is not plain LoRA on the decoder's projections.
    """
    where = directory / CONFIG
    options = read_json(where)
    for key, plain in PLAIN.items():
        if (options.get(key) or plain) != plain:
            raise ModelError(
                f"{where}: {key} is {options[key]!r}; whet reads plain LoRA only ({key} = {plain!r})"
            )
    rank, alpha = options.get("r"), options.get("lora_alpha")
    if (
        type(rank) is not int
        or rank < 1
        or isinstance(alpha, bool)
        or not isinstance(alpha, int | float)
        or not alpha > 0
    ):
        raise ModelError(
            f"{where}: r is {rank!r} and lora_alpha {alpha!r}; both must be numbers above 0, "
            "r a whole one"
        )
    with opened(directory) as file:
        names = {name.split(".")[-3] for name in file.keys() if name.count(".") > 3}  # noqa: SIM118
    if not names or not names <= set(PROJECTIONS):
        odd = ", ".join(sorted(names - set(PROJECTIONS))) or "nothing"
        raise ModelError(
            f"{directory}: it adapts {odd}; whet's decoder has adapters on {', '.join(PROJECTIONS)}"
        )
    return Lora(rank=rank, alpha=float(alpha), targets=[n for n in PROJECTIONS if n in names])


def opened(directory: Path) -> Any:
    """Opens the adapter's tensors, for a `with`. Raises ModelError where none can be read."""
    from safetensors import SafetensorError, safe_open

    path = directory / WEIGHTS
    if not path.is_file():
        pickled = (directory / "adapter_model.bin").exists()
        why = (
            "only pickled weights, which whet never loads; save it again with safe_serialization"
            if pickled
            else f"no {WEIGHTS}"
        )
        raise ModelError(f"{directory} has {why}")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as failure:
        raise ModelError(f"{path} is broken or cut short ({failure}); copy it again") from None


def names(module: str, maps: LoraLinear) -> dict[str, Tensor]:
    """Returns {PEFT's name: A or B} of a module of the decoder, such as layers.0.qkv."""
    layer, kind = (
        module.split(".")[1],
        "mlp" if module.endswith(("gate_up", "down")) else "self_attn",
    )
    named: dict[str, Tensor] = {}
    for target in maps.lora_a:
        stem = f"{PREFIX}model.layers.{layer}.{kind}.{target}"
        named[f"{stem}.lora_A.weight"] = maps.lora_a[target]
        named[f"{stem}.lora_B.weight"] = maps.lora_b[target]
    return named


def tensors(model: Policy) -> dict[str, Tensor]:
    """Returns all of a model's adapters, the tensors themselves, under PEFT's names."""
    every = (names(module, maps) for module, maps in adapted(model).items())
    return {name: tensor for named in every for name, tensor in named.items()}


def write(model: Policy, directory: Path, base: str) -> None:
    """Writes a model's adapters, trained on `base`, into a directory that `committed` has yielded.

    Raises ModelError where it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    rank, alpha, targets = described(adapted(model))
    options = {
        **PLAIN,
        "task_type": "CAUSAL_LM",
        BASE: base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": [n for n in PROJECTIONS if n in targets],
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in tensors(model).items()
    }
    try:
        save_file(copies, directory / WEIGHTS, metadata={"format": "pt"})
        _write_json(directory / CONFIG, options)
    except (SafetensorError, OSError) as failure:
        raise ModelError(f"{directory} cannot be written: {failure}") from None


def put(model: Policy, directory: Path) -> None:
    """Adds the adapters of a directory to a model. Raises ModelError where they do not fit it."""
    if not isinstance(model, Transformer):
        raise ModelError(
            f"{directory}: whet reads adapters of its own decoder only "
            "(llama, qwen2, qwen3, smollm3)"
        )
    adapt(model, shape_of(directory))
    expected = tensors(model)
    with opened(directory) as file:
        stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        if odd := sorted(stored.keys() ^ expected.keys()):
            lacks = "lacks" if odd[0] in expected else "holds"
            raise ModelError(
                f"{directory} {lacks} {odd[0]} ({len(odd)} such): its adapters do not fit the base "
                f"{base_of(directory)}"
            )
        for name, tensor in expected.items():
            shape, dtype = tuple(stored[name].get_shape()), stored[name].get_dtype()
            if shape != tuple(tensor.shape) or dtype not in FLOATS:
                raise ModelError(
                    f"{directory}: {name} is {dtype} of shape {list(shape)}; the base "
                    f"{base_of(directory)} and r call for floating-point numbers of shape "
                    f"{list(tensor.shape)}"
                )
            tensor.data.copy_(cast(Tensor, file.get_tensor(name)))


def rebase(directory: Path, old: Path, new: Path) -> None:
    """Mends an adapter's relative path to its base, for a copy in `directory` of `old` to be `new`."""
    if not holds_adapter(directory):
        return
    options = read_json(directory / CONFIG)
    if not os.path.isabs(options[BASE]) and (old / options[BASE]).is_dir():
        options[BASE] = os.path.relpath(old / options[BASE], new)
        _write_json(directory / CONFIG, options)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
