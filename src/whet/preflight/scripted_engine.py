"""A sampler whose answers have known lengths and texts, so that sampling can be timed."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from whet.chat import Chat
from whet.chat.thinking import left
from whet.engines.native import NativeEngine
from whet.engines.requests import Requests
from whet.model.transformer import Transformer
from whet.types import Progress, Prompt, Sample, Sampling

Answers = Sequence[tuple[int, str]]  # (tokens, the end of turn included; text)


class ScriptedEngine(NativeEngine):
    """The native engine, which draws as many tokens as an answer of `answers` has.

    The tokens are the model's; each sample's text is the answer's, chosen at random.
    """

    def __init__(self, model: Transformer, chat: Chat, answers: Answers) -> None:
        super().__init__(model, chat, ())
        self.tokenizer, self.answers = chat, answers
        self.script: list[tuple[int, str]] = []  # an answer for each sample of the current call

    def requests(self, prompts: Sequence[Prompt], sampling: Sampling) -> Requests:
        requests = super().requests(prompts, sampling)
        rng = random.Random(f"lengths {sampling.seed}")
        answers = rng.choices(self.answers, k=requests.total)
        self.script = [
            self._continuation(prompts[i // sampling.n], *answer)
            for i, answer in enumerate(answers)
        ]
        requests.limits = np.array([min(n, sampling.max_tokens) for n, _ in self.script])
        return requests

    def _continuation(self, prompt: Prompt, tokens: int, text: str) -> tuple[int, str]:
        """Returns the answer without what the prompt has begun of it: its thinking, if switched off."""
        rest = left(prompt, text) if prompt.begun else text
        return (tokens, text) if rest == text else (len(self.tokenizer.response(rest)), rest)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[tuple[Sample, ...]]:
        drawn = super().generate(prompts, sampling, progress)
        texts = (text for _, text in self.script)
        return [
            tuple(replace(s, text=next(texts), finish="stop") for s in group) for group in drawn
        ]
