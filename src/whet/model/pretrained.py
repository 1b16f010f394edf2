"""Models by directory or Hub id: found, loaded, saved, in Hugging Face's format. No pickle, no
remote code.
"""

import json
import re
from contextlib import ExitStack
from pathlib import Path

import torch

from whet.errors import ModelError
from whet.model import lora, lora_files, weights
from whet.model.config_file import (
    CONFIG,
    FAMILIES,
    GENERATION,
    config_json,
    generation_json,
    model_type,
    read_config,
)
from whet.model.policy import Policy
from whet.model.transformer import Transformer
from whet.storage.atomic import committed

__all__ = [
    "SHARD_BYTES",
    "base_directory",
    "load",
    "read_config",
    "resolve",
    "save",
    "tokenizer_directory",
    "write",
]

SHARD_BYTES = 5_000_000_000
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WANTED = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
UNWANTED = ["*/*", "consolidated*"]  # folders hold other formats of the same weights


def resolve(name: str | Path) -> Path:
    """The directory of a model: `name` itself, or a Hub id (`Qwen/Qwen3-0.6B`), downloaded unless
    it was before.

    Raises ModelError where there is no such directory and the Hub does not have it or cannot be
    reached.
    """
    name = str(name)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name and path.exists():
        raise ModelError(
            f"{name} is a file; give the directory that holds config.json and the weights"
        )
    if not HUB_ID.fullmatch(name):
        raise ModelError(
            f"there is no directory {name!r}; give a model's directory or a Hub id such as Qwen/Qwen3-0.6B"
        )
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    missing = f"{name} is no directory here, and"
    later = [
        getattr(errors, n)
        for n in ("XetDownloadError", "RevisionResolutionError")
        if hasattr(errors, n)
    ]
    network = [base for base in errors.HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except errors.GatedRepoError:
        raise ModelError(
            f"{missing} on the Hub it is gated: accept its terms there, then run `hf auth login`"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ModelError(
            f"{missing} the Hub has no public model of this name; check its spelling"
        ) from None
    except (*network, *later, OSError) as failure:
        why = str(failure).strip().partition("\n")[0]
        cure = f"where there is a network run `hf download {name} --local-dir DIR`, copy DIR here and give its path"
        raise ModelError(
            f"{missing} it cannot be had from the Hugging Face Hub ({why}); {cure}"
        ) from None


def load(
    name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Policy:
    """A model with its weights in `dtype` on `device`: whet's decoder for its FAMILIES, else an
    adapted transformers model.

    Of an adapter in PEFT's format, the base that it names and the adapter in it.
    Takes the memory of the model and of its largest stored tensor. Raises ModelError for all that
    can be wrong with a directory, before any weight is read.
    """
    directory = resolve(name)
    if lora_files.holds_adapter(directory):
        model = load(base_directory(directory), dtype, device)
        lora_files.put(model, directory)
        return model
    if model_type(directory) not in FAMILIES:
        from whet.model import huggingface

        return huggingface.load(directory, dtype, device)
    config = read_config(directory)
    with ExitStack() as stack:
        shards = weights.Shards(directory, stack)
        weights.check(config, shards)
        with torch.device("meta"):
            model = Transformer(config)
        weights.fill(model, config, shards, dtype, device)
    if config.tied and not config.scalar:
        model.head.weight = model.embed.weight
    model.rotary.to(device)
    return model


def base_directory(directory: Path) -> Path:
    """The whole model of a directory: itself, or the base of the adapter that it holds. Raises
    ModelError.
    """
    if not lora_files.holds_adapter(directory):
        return directory
    base = resolve(lora_files.base_of(directory))
    if lora_files.holds_adapter(base):
        raise ModelError(
            f"the base of the adapter {directory} is an adapter, too ({base}); merge one of them first"
        )
    return base


def tokenizer_directory(directory: Path) -> Path:
    """Where a model's tokenizer is: its directory, or its base's for an adapter that came without
    one. Raises ModelError.
    """
    return directory if (directory / "tokenizer.json").is_file() else base_directory(directory)


def write(model: Policy, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """config.json, generation_config.json and the weights, into a directory that `committed` has
    yielded; adapters are folded in.

    Raises ModelError where it cannot be written or Hugging Face's format cannot say what the model
    is.
    """
    if not isinstance(model, Transformer):
        from whet.model import huggingface

        huggingface.write(model, directory, shard_bytes)
        return
    if lora.adapted(model):
        model = lora.copied(model)
        lora.merge(model)
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    texts = {CONFIG: config_json(model.config, dtype), GENERATION: generation_json(model.config)}
    weights.write(weights.tensors(model, model.config), directory, shard_bytes)
    try:
        for name, held in texts.items():
            (directory / name).write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
    except OSError as failure:
        raise ModelError(f"{directory} cannot be written: {failure}") from None


def save(model: Policy, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """`write`, committed: the directory is there whole or not at all; the one before it is
    replaced, its tokenizer too.

    To keep a tokenizer with the weights, write both inside one `committed(directory)`.
    """
    with committed(directory) as folder:
        write(model, folder, shard_bytes)
