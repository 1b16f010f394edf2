"""Any causal language model of transformers as a Policy (extra `hf`)."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from whet.errors import ModelError
from whet.model.attention import Packed
from whet.model.config import ModelConfig
from whet.model.config_file import CONFIG, GENERATION, model_type, read_json
from whet.model.weights import Shards

# What transformers and torch raise over a configuration or a file that they cannot use.
REFUSALS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError,
    ArithmeticError,
)  # fmt: skip
UNLIMITED = 1 << 24  # max_positions of a model that states none
ALIGNED = 64  # bytes


class HuggingFaceModel(nn.Module):
    """A model of transformers that takes packs; `hf` is the model itself, for its engine.

    It stays in evaluation mode: dropout would make the trainer's log-probabilities differ from the
    sampler's. Raises ModelError where whet does not know how its logits follow from its last hidden
    states.
    """

    def __init__(self, hf: Any, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.hf = hf.eval()
        text = hf.config.get_text_config()
        scale, shrink = (getattr(text, key, None) for key in ("logit_scale", "logits_scaling"))
        scale, shrink = (1.0 if x is None else float(x) for x in (scale, shrink))
        self.scale = scale / shrink
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)
        self.takes_positions = "position_ids" in inspect.signature(self.body.forward).parameters
        if hf.get_output_embeddings() is None or self.body is hf:
            raise ModelError(f"a {config.family} has no head of its own, so whet cannot train it")
        self._probe()

    @property
    def body(self) -> Any:
        """The model without its head."""
        return self.hf.base_model

    def train(self, mode: bool = True) -> "HuggingFaceModel":
        """Keeps evaluation mode; gradients flow all the same."""
        super().train(False)
        return self

    def packed(
        self, tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"], starts: Int[Tensor, " s1"]
    ) -> Float[Tensor, "n h"]:
        """Returns the hidden states [N, hidden] of a pack, computed in right-padded batches.

        starts [S + 1]: the segments' offsets, ending with N. Raises ValueError for positions that do
        not count from 0 where the model counts them itself.
        """
        hidden = None
        for index, real in Packed(starts).buckets:
            named: dict[str, Tensor] = {"input_ids": tokens[index], "attention_mask": real.long()}
            if self.takes_positions:
                named["position_ids"] = positions[index]
            else:
                counted = torch.arange(index.shape[1], device=index.device)
                if (positions[index] != counted)[real].any():
                    raise ValueError(
                        f"a {self.config.family} counts its own positions; they must start at 0"
                    )
            read = self.body(**named, use_cache=False).last_hidden_state
            hidden = read.new_zeros(len(tokens), read.shape[-1]) if hidden is None else hidden
            hidden = hidden.index_put((index[real],), read[real])
        assert hidden is not None  # Packed has refused an empty pack
        return hidden

    def logits(self, hidden: Float[Tensor, "m h"]) -> Float[Tensor, "m v"]:
        """Returns logits, scaled and softly capped (arXiv:2408.00118, section 2) as the model's."""
        logits = self.hf.get_output_embeddings()(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @torch.no_grad()
    def _probe(self) -> None:
        """Compares these logits with the model's own on a few tokens; raises ModelError."""
        tokens = torch.arange(min(4, self.config.vocab), device=self.hf.device)
        theirs = self.hf(input_ids=tokens[None]).logits[0].float()
        positions, starts = torch.arange(len(tokens)), tokens.new_tensor([0, len(tokens)])
        ours = self.logits(self.packed(tokens, positions.to(tokens), starts)).float()
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max())):
            raise ModelError(
                f"whet does not know how a {self.config.family} makes its logits, "
                "so it cannot train it"
            )


def load(directory: Path, dtype: torch.dtype, device: str | torch.device) -> HuggingFaceModel:
    """Loads a directory's model by transformers: no remote code, no pickle, no random weights.

    Raises ModelError where transformers is missing or cannot load it, and where weights are
    missing, broken or quantized.
    """
    kind = model_type(directory)
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise ModelError(
            f"{directory} is a {kind}, which whet loads through transformers; "
            "pip install 'whet[hf]'"
        ) from None
    if read_json(directory / CONFIG).get("quantization_config"):
        raise ModelError(f"{directory} is quantized; give the model it was made from")
    with ExitStack() as stack:
        Shards(directory, stack)  # refuses pickle and broken files in plain words
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(directory, **local)
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                # The fused kernels leave the cap out.
                attn_implementation="eager" if capped else None,
                **local,
            )
    except (*REFUSALS, StrictDataclassError) as failure:
        raise ModelError(
            f"{directory} is a {kind}, which transformers cannot load: {_line(failure)}"
        ) from None
    hf, report = loaded
    mismatched = sorted(str(m[0]) for m in report["mismatched_keys"])
    if lost := sorted(report["missing_keys"]) + mismatched:
        raise ModelError(
            f"{directory} lacks {lost[0]} in the right shape ({len(lost)} such); "
            "is the model whole?"
        )
    return HuggingFaceModel(_aligned(hf.to(device)), _config(hf, directory))


def _aligned(hf: Any) -> Any:
    """Moves weights that lie at odd addresses of a file to where torch allocates.

    A matrix product's rounding depends on where in a cache line it begins to read. Without the move
    a resumed run would differ from an uninterrupted one.
    """
    for p in hf.parameters():
        if p.data_ptr() % ALIGNED:
            p.data = p.data.clone()
    return hf


def write(model: object, directory: Path, shard_bytes: int) -> None:
    """Writes configuration, generation settings and safetensors by save_pretrained.

    Raises ModelError where it cannot.
    """
    if not isinstance(model, HuggingFaceModel):
        raise TypeError(f"{type(model).__name__} is no model that whet can save")
    try:
        with _quiet():
            model.hf.save_pretrained(directory, max_shard_size=shard_bytes)
    except REFUSALS as failure:
        raise ModelError(
            f"{directory}: a {model.config.family} cannot be saved: {_line(failure)}"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' tables and bars; faults are raised instead."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(failure: Exception) -> str:
    """Another library's message in one line of at most 300 characters."""
    words = " ".join(str(failure).split())
    return words if len(words) <= 300 else f"{words[:300]} …"


def _config(hf: Any, directory: Path) -> ModelConfig:
    """Returns transformers' configuration as a ModelConfig; numbers that a model lacks are 0."""
    text = hf.config.get_text_config()
    generation = read_json(directory / GENERATION) if (directory / GENERATION).exists() else {}

    def count(key: str, default: int = 0) -> int:
        value = getattr(text, key, None)
        return value if isinstance(value, int) else default

    def ids(key: str) -> list[int]:
        every: list[int] = []
        for value in (generation.get(key), getattr(text, key, None), getattr(hf.config, key, None)):
            every += value if isinstance(value, list) else [] if value is None else [value]
        return list(dict.fromkeys(every))

    heads, head = count("num_attention_heads"), hf.get_output_embeddings()
    return ModelConfig(
        family=hf.config.model_type,
        vocab=head.weight.shape[0] if head else count("vocab_size"),
        hidden=count("hidden_size"),
        layers=count("num_hidden_layers"),
        heads=heads,
        kv_heads=count("num_key_value_heads", heads),
        head_dim=count("head_dim", count("hidden_size") // max(heads, 1)),
        ffn=count("intermediate_size", 4 * count("hidden_size")),
        tied=bool(getattr(text, "tie_word_embeddings", False)),
        max_positions=count("max_position_embeddings", UNLIMITED),
        bos=next(iter(ids("bos_token_id")), None),
        eos=tuple(ids("eos_token_id")),
        pad=next(iter(ids("pad_token_id")), None),
    )
