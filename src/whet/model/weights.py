"""The decoder's weights to and from safetensors files, under Hugging Face's names.

The decoder fuses some: `qkv` is q_proj, k_proj and v_proj stacked, `gate_up` is gate_proj and
up_proj.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import ModelError
from whet.model.config import ModelConfig
from whet.model.config_file import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64", "F32", "F16", "BF16"}
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of Hugging Face's format: some rows of a parameter of the decoder."""

    name: str
    shape: Shape


def parts(config: ModelConfig) -> dict[str, tuple[Part, ...]]:
    """Returns {parameter of the decoder: the tensors stacked in it}; a tied head is left out."""
    c = config
    q, kv, h = c.heads * c.head_dim, c.kv_heads * c.head_dim, c.hidden
    stacks: dict[str, tuple[Part, ...]] = {
        "embed.weight": (Part("model.embed_tokens.weight", (c.vocab, h)),)
    }
    for i in range(c.layers):
        attention, ffn = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        qkv = [(f"{attention}.{x}_proj", rows) for x, rows in (("q", q), ("k", kv), ("v", kv))]
        gate_up = [(f"{ffn}.{x}_proj", c.ffn) for x in ("gate", "up")]
        linear: list[tuple[str, Sequence[tuple[str, int]], int, bool]] = [
            ("qkv", qkv, h, c.qkv_bias),
            ("out", [(f"{attention}.o_proj", h)], q, c.out_bias),
            ("gate_up", gate_up, h, c.mlp_bias),
            ("down", [(f"{ffn}.down_proj", h)], c.ffn, c.mlp_bias),
        ]
        norms = [("attention", "input_layernorm", h), ("ffn", "post_attention_layernorm", h)]
        if c.qk_norm:
            norms += [("q", "self_attn.q_norm", c.head_dim), ("k", "self_attn.k_norm", c.head_dim)]
        for ours, theirs, width, biased in linear:
            stacks[f"layers.{i}.{ours}.weight"] = tuple(
                Part(f"{n}.weight", (rows, width)) for n, rows in theirs
            )
            if biased:
                stacks[f"layers.{i}.{ours}.bias"] = tuple(
                    Part(f"{n}.bias", (rows,)) for n, rows in theirs
                )
        for ours, theirs, width in norms:
            stacks[f"layers.{i}.norm_{ours}.weight"] = (
                Part(f"model.layers.{i}.{theirs}.weight", (width,)),
            )
    stacks["norm.weight"] = (Part("model.norm.weight", (h,)),)
    if c.scalar:
        stacks["head.weight"] = (Part("score.weight", (1, h)),)
    elif not c.tied:
        stacks["head.weight"] = (Part("lm_head.weight", (c.vocab, h)),)
    return stacks


def tensors(model: nn.Module, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor under Hugging Face's name, as a view of the model's parameter."""
    ours = dict(model.named_parameters())
    for name, stacked in parts(config).items():
        split = ours[name].detach().split([p.shape[0] for p in stacked])
        yield from zip((p.name for p in stacked), split, strict=True)


class Shards:
    """The open safetensors files of a directory, of which only the headers are read at first.

    Raises ModelError where the directory has none, one is missing or broken, or the index disagrees
    with them.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self.directory = directory
        self.files: dict[str, Any] = {}  # by tensor
        for name in shard_names(directory):
            path = directory / name
            if not path.is_file():
                raise ModelError(
                    f"{path} is missing, though {INDEX} names it; download or copy the model again"
                )
            try:
                file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as failure:
                raise ModelError(
                    f"{path} is broken or cut short ({failure}); download or copy it again"
                ) from None
            self.files |= dict.fromkeys(file.keys(), file)

    def shape(self, name: str) -> Shape:
        return tuple(self.files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The stored number format, by safetensors' name."""
        return self.files[name].get_slice(name).get_dtype()

    def tensor(self, name: str) -> Tensor:
        from safetensors import SafetensorError

        try:
            return self.files[name].get_tensor(name)
        except (SafetensorError, OSError) as failure:
            raise ModelError(f"{self.directory}: {name} cannot be read ({failure})") from None


def shard_names(directory: Path) -> list[str]:
    """Returns the names of a directory's weight files.

    Raises ModelError where there are none, or only pickled ones.
    """
    if (directory / SINGLE).exists():
        return [SINGLE]
    if not (directory / INDEX).exists():
        pickled = sorted(
            p.name
            for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")
            for p in directory.glob(pattern)
        )
        if pickled:
            raise ModelError(
                f"{directory} holds only pickled weights ({pickled[0]}), which whet never loads; "
                "convert it where you trust it: transformers' from_pretrained, then save_pretrained"
            )
        raise ModelError(f"{directory} has neither {SINGLE} nor {INDEX}; it holds no weights")
    weight_map = read_json(directory / INDEX).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise ModelError(
            f"{directory / INDEX} has no weight_map from tensors to files of this directory"
        )
    return sorted(names)


def check(config: ModelConfig, shards: Shards) -> None:
    """Compares the stored tensors with the config.

    Raises ModelError where one is missing, left over, of the wrong shape or not floating-point.
    """
    expected = {p.name: p.shape for stacked in parts(config).values() for p in stacked}
    where = shards.directory
    stored = {n for n in shards.files if not n.endswith("rotary_emb.inv_freq")}
    if missing := sorted(expected.keys() - stored):
        raise ModelError(
            f"{where} lacks {_some(missing)}, which its config.json calls for; is the model whole?"
        )
    extra = stored - expected.keys()
    if config.tied and not config.scalar and "lm_head.weight" in extra:
        head, embeddings = map(shards.tensor, ("lm_head.weight", "model.embed_tokens.weight"))
        if not torch.equal(head, embeddings):
            raise ModelError(
                f"{where}: lm_head.weight differs from the embeddings that it is said to be tied to; "
                "set tie_word_embeddings to false in its config.json if the head is meant"
            )
        extra.remove("lm_head.weight")
    if extra:
        raise ModelError(
            f"{where} holds {_some(sorted(extra))}, which its config.json has no place for"
        )
    for name, shape in expected.items():
        if shards.shape(name) != shape:
            raise ModelError(
                f"{where}: {name} has shape {list(shards.shape(name))}; "
                f"config.json calls for {list(shape)}"
            )
        if shards.dtype(name) not in FLOATS:
            raise ModelError(
                f"{where}: {name} is stored as {shards.dtype(name)}; "
                "whet loads unquantized weights only"
            )


def fill(
    model: nn.Module,
    config: ModelConfig,
    shards: Shards,
    dtype: torch.dtype,
    device: str | torch.device,
) -> None:
    """Fills a model that was made on the meta device, one stored tensor at a time."""
    ours = dict(model.named_parameters())
    for name, stacked in parts(config).items():
        home, _, last = name.rpartition(".")
        whole = torch.empty(ours[name].shape, dtype=dtype, device=device)
        for part, rows in zip(stacked, whole.split([p.shape[0] for p in stacked]), strict=True):
            rows.copy_(shards.tensor(part.name))
        setattr(model.get_submodule(home), last, nn.Parameter(whole))


def write(named: Iterable[tuple[str, Tensor]], directory: Path, shard_bytes: int) -> None:
    """Writes tensors to one safetensors file, or to several of `shard_bytes` with their index.

    A tensor larger than `shard_bytes` has a file of its own. Raises ModelError where they cannot be
    written, and ValueError where shard_bytes is below 1.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards = _split(named, shard_bytes)
    one = len(shards) == 1
    files = [
        SINGLE if one else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, shard in zip(files, shards, strict=True):
            copies = {n: tensor.to("cpu", copy=True).contiguous() for n, tensor in shard.items()}
            save_file(copies, directory / file, metadata={"format": "pt"})
        if not one:
            weight_map = {n: file for file, shard in zip(files, shards, strict=True) for n in shard}
            size = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    except (SafetensorError, OSError) as failure:
        raise ModelError(f"{directory} cannot be written: {failure}") from None


def _split(named: Iterable[tuple[str, Tensor]], shard_bytes: int) -> list[Mapping[str, Tensor]]:
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes is {shard_bytes}; it must be at least 1")
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in named:
        more = tensor.numel() * tensor.element_size()
        if shards[-1] and size + more > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += more
    return list(shards)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
