"""Loads and saves models in Hugging Face's format, by directory or Hub id.

Pickled weights and remote code are refused.
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
    """Returns a model's directory: `name`, or the download of a Hub id (`Qwen/Qwen3-0.6B`).

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
            f"there is no directory {name!r}; give a model's directory or a Hub id such as "
            "Qwen/Qwen3-0.6B"
        )
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    missing = f"{name} is no directory here, and"
    newer = ("XetDownloadError", "RevisionResolutionError")  # of recent versions only
    later = [getattr(errors, n) for n in newer if hasattr(errors, n)]
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
        raise ModelError(
            f"{missing} it cannot be had from the Hugging Face Hub ({why}); where there is a network "
            f"run `hf download {name} --local-dir DIR`, copy DIR here and give its path"
        ) from None


def load(
    name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Policy:
    """Loads a model: whet's decoder for its FAMILIES, else one of transformers.

    A directory with a LoRA adapter gives the adapter's base with the adapter in it. Loading takes
    the memory of the model and of its largest stored tensor. Raises ModelError for a faulty
    directory before any weight is read.
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
    """Returns the directory itself, or the base's for one that holds an adapter.

    Raises ModelError where the base cannot be found or is an adapter, too.
    """
    if not lora_files.holds_adapter(directory):
        return directory
    base = resolve(lora_files.base_of(directory))
    if lora_files.holds_adapter(base):
        raise ModelError(
            f"the base of the adapter {directory} is an adapter, too ({base}); "
            "merge one of them first"
        )
    return base


def tokenizer_directory(directory: Path) -> Path:
    """Returns the directory of a model's tokenizer: its own, or the base's for an adapter without.

    Raises ModelError as `base_directory` does.
    """
    return directory if (directory / "tokenizer.json").is_file() else base_directory(directory)


def write(model: Policy, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config.json, generation_config.json and weights to a directory from `committed`.

    Adapters are merged into the weights. Raises ModelError where the directory cannot be written,
    and where Hugging Face's format cannot express the model.
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
        for name, value in texts.items():
            (directory / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as failure:
        raise ModelError(f"{directory} cannot be written: {failure}") from None


def save(model: Policy, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the model as a directory, whole or not at all; an older one is replaced entirely.

    To keep a tokenizer with the weights, write both inside one `committed(directory)`.
    """
    with committed(directory) as folder:
        write(model, folder, shard_bytes)
