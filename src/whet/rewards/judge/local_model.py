"""A judge in this process: one forward pass of the prompt gives the probabilities of the two labels."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from whet.chat import Chat
from whet.errors import DataError, ModelError
from whet.model import pretrained
from whet.model.logprobs import processed
from whet.model.policy import Policy
from whet.rewards.judge.verdict import Failure, Verdict, confident

PACK = 8192  # tokens of a forward pass; a longer prompt stands alone
PROMPTS = 16_384  # prompts of a forward pass
LABELS = ("0", "1")


class LocalJudge:
    """A model's directory or Hub id as a judge; its weights are loaded when it is first asked.

    On a GPU, where there is one, in bfloat16; on a CPU in float32. Raises ModelError for what
    cannot be loaded, and for a tokenizer that has no one token for a label.
    """

    def __init__(self, model: str) -> None:
        self.directory = pretrained.resolve(model)
        self.chat = Chat.load(self.directory)
        self.labels = [spellings(self.chat, label) for label in LABELS]
        if not all(self.labels) or self.labels[0] & self.labels[1]:
            raise ModelError(
                f"{self.directory}: the tokenizer has no token for 0 and another for 1, "
                "so it cannot judge"
            )
        self.identity = fingerprint(self.directory)

    @cached_property
    def policy(self) -> Policy:
        cuda = torch.cuda.is_available()
        dtype, device = (torch.bfloat16, "cuda") if cuda else (torch.float32, "cpu")
        policy = pretrained.load(self.directory, dtype, device).eval().requires_grad_(False)
        if self.chat.vocab > policy.config.vocab:
            raise ModelError(
                f"{self.directory}: the tokenizer has ids up to {self.chat.vocab - 1}, "
                f"the model {policy.config.vocab} rows"
            )
        return policy

    def judge(self, texts: Sequence[str]) -> Iterator[tuple[int, Verdict | Failure]]:
        """N prompts -> (position, verdict) of each, as they come."""
        prompts: dict[int, list[int]] = {}
        for i, text in enumerate(texts):
            try:
                tokens = self.chat.render([{"role": "user", "content": text}], thinking=False)
            except DataError as error:  # a character that the judge's tokenizer lacks
                yield i, Failure("error", str(error))
                continue
            if len(tokens) > (most := self.policy.config.max_positions):
                fault = f"the prompt has {len(tokens)} tokens, the judge {most} positions"
                yield i, Failure("error", fault)
                continue
            prompts[i] = tokens
        for pack in packs({i: len(p) for i, p in prompts.items()}, PROMPTS):
            yield from zip(pack, self.verdicts([prompts[i] for i in pack]), strict=True)

    def verdicts(self, prompts: Sequence[Sequence[int]]) -> list[Verdict | Failure]:
        """The verdicts on S prompts in one pack: the most likely next token of the whole
        vocabulary.
        """
        device = next(self.policy.parameters()).device
        lengths = torch.tensor([len(p) for p in prompts])
        tokens = torch.tensor([t for p in prompts for t in p])
        starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        positions = torch.arange(len(tokens)) - starts[:-1].repeat_interleave(lengths)
        with torch.inference_mode():
            hidden = self.policy.packed(tokens.to(device), positions.to(device), starts.to(device))
            logp = processed(self.policy.logits(hidden[starts[1:].to(device) - 1]))
        return [self.verdict(row) for row in logp]

    def verdict(self, logp: Tensor) -> Verdict | Failure:
        """The verdict of one distribution [V]. A label's probability is that of all its spellings."""
        first = int(logp.argmax())
        for label, ids in enumerate(self.labels):
            if first in ids:
                return confident(label, min(1.0, float(logp[sorted(ids)].exp().sum())))
        piece = self.chat.pieces([first])[0]
        return Failure("error", f"the judge began with {piece!r:.40}, not with 0 or 1")


def fingerprint(directory: Path) -> str:
    """A digest of a model's files: their names, sizes and times."""
    files = sorted(
        p for p in directory.iterdir() if p.suffix in (".json", ".safetensors", ".jinja")
    )
    figures = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(repr(figures).encode()).hexdigest()


def spellings(chat: Chat, label: str) -> set[int]:
    """The tokens that are the label, with or without a space before it."""
    spelt: set[int] = set()
    for write in (
        lambda: chat.response(label)[:-1],
        lambda: chat.response(f" {label}")[:-1],
        lambda: chat.encode(label),
    ):
        with suppress(DataError):  # an alphabet without a space, or without digits
            ids = write()
            spelt |= set(ids) if len(ids) == 1 else set()
    return spelt


def packs(lengths: dict[int, int], rows: int) -> Iterator[list[int]]:
    """The keys, shortest prompt first, in packs of at most PACK tokens and `rows` prompts.

    >>> list(packs({0: 5000, 1: 100, 2: 4000, 3: 9000}, 8))
    [[1, 2], [0], [3]]
    """
    pack: list[int] = []
    size = 0
    for key in sorted(lengths, key=lengths.__getitem__):
        if pack and (size + lengths[key] > PACK or len(pack) >= rows):
            yield pack
            pack, size = [], 0
        pack.append(key)
        size += lengths[key]
    if pack:
        yield pack
