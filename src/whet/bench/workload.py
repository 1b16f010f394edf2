"""The workloads of the bench, and the models of three sizes that run them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from whet.chat import Chat
from whet.errors import WhetError, did_you_mean
from whet.model import pretrained
from whet.model.config import ModelConfig
from whet.model.transformer import Transformer

END = "<eos>"

# hidden, layers, heads, feed-forward. Qwen3's architecture with keys and values for every head.
SIZES = {"0.2M": (96, 2, 4, 224), "5M": (256, 6, 4, 688), "50M": (640, 10, 10, 1728)}


@dataclass(frozen=True)
class Workload:
    """A step of RL: `prompts` x `samples` answers of fixed lengths, `updates` optimizer steps, the
    same weight on every token.

    With `spread` 0 every answer has `length` tokens. Otherwise lengths are lognormal with that
    median, `spread` as the deviation of their logarithm, cut off at `cap`. `silent` is the share of
    groups whose rewards are all equal.
    """

    name: str
    about: str
    prompts: int = 4
    samples: int = 8
    prompt: int = 16  # tokens
    length: int = 128
    spread: float = 0.0
    cap: int = 128
    silent: float = 0.0
    vocab: int = 1024
    updates: int = 1
    beta: float = 0.0
    only_sampling: bool = False

    def shape(self, size: str) -> ModelConfig:
        hidden, layers, heads, ffn = SIZES[size]
        positions = self.prompt + self.cap + 1
        return ModelConfig(
            "qwen3", self.vocab, hidden, layers, heads, heads, hidden // heads, ffn, qk_norm=True,
            max_positions=positions, eos=(0,), pad=1,
        )  # fmt: skip

    def lengths(self, step: int) -> NDArray[np.int64]:
        """[prompts * samples] tokens of each answer, prompt by prompt.

        Every step has the same lengths in another order.
        """
        count = self.prompts * self.samples
        if not self.spread:
            return np.full(count, self.length)
        # The middle of each of `count` equally likely stretches of a normal distribution.
        middle = torch.special.ndtri(
            (torch.arange(count, dtype=torch.float64) + 0.5) / count
        ).numpy()
        wanted = np.minimum(np.round(self.length * np.exp(self.spread * middle)), self.cap).astype(
            np.int64
        )
        return np.random.default_rng(step).permutation(wanted)

    def rewards(self) -> list[float]:
        """[prompts * samples] rewards: 0 and 1 in turn; all 1 in the first groups, the silent ones."""
        quiet = round(self.silent * self.prompts) * self.samples
        return [1.0 if i < quiet else float(i % 2) for i in range(self.prompts * self.samples)]

    def questions(self, step: int) -> list[str]:
        """Each prompt's text: words that are one token each, none of them special."""
        rng = np.random.default_rng([7, step])
        words = rng.integers(2, self.vocab, (self.prompts, self.prompt)).tolist()
        return [" ".join(f"w{i}" for i in row) for row in words]


WORKLOADS = {
    w.name: w
    for w in (
        Workload("worst", "fixed lengths, short prompts, every group with signal"),
        Workload(
            "typical",
            "prompts of 256, groups of 16, lengths of median 60 cut at 512, half of the groups "
            "without signal",
            prompts=2, samples=16, prompt=256, length=60, spread=1.0, cap=512, silent=0.5,
        ),
        Workload("vocabulary", "as worst, with a vocabulary of 32,768", vocab=32_768),
        Workload("vocabulary-152k", "as worst, with a vocabulary of 151,936", vocab=151_936),
        Workload(
            "ppo",
            "prompts of 64, lengths of median 60 cut at 256, four clipped updates a rollout, held to "
            "a reference",
            prompt=64, length=60, spread=1.0, cap=256, updates=4, beta=0.04,
        ),
        Workload(
            "sampling", "sampling alone, 16 prompts x 8 samples of 128 tokens",
            prompts=16, only_sampling=True,
        ),
    )
}  # fmt: skip


def workload(name: str, changed: Mapping[str, Any] | None = None) -> Workload:
    """The workload of this name, with changed fields. Raises WhetError for an unknown name."""
    if name not in WORKLOADS:
        raise WhetError(f"there is no work {name!r}{did_you_mean(name, WORKLOADS)}")
    return replace(WORKLOADS[name], **(changed or {}))


def prepare(work: Workload, size: str, directory: Path) -> None:
    """Writes the model that every side loads, in Hugging Face's format: random weights, and a
    tokenizer of words.
    """
    directory.mkdir(parents=True)
    words = {END: 0, **{f"w{i}": i for i in range(1, work.vocab)}}
    tokenizer: Any = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    model = Transformer(work.shape(size)).initialize(torch.Generator().manual_seed(0))
    pretrained.write(model, directory)
    Chat.load(directory)
