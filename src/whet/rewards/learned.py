"""A reward model's score: what `reward_model` stages train, or any sequence classifier with one
label in Hugging Face's format.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from pydantic import Field

from whet.chat import Chat
from whet.errors import DataError, ModelError, RewardError
from whet.model import pretrained, value_head
from whet.rewards.base import RewardOptions
from whet.types import Problem, Sample, Score


class LearnedReward(RewardOptions):
    """The score of the last token of prompt and response, end of turn included unless the response
    was cut off.

    The model is loaded when it is first asked, so that a stage can make it. Responses are packed,
    not padded: a score does not depend on what else is scored. Raises RewardError, in one line,
    where the model cannot be loaded.
    """

    owner = "reward learned"
    model: str = Field(
        min_length=1, description="a directory or a Hub id; in a recipe also a reward_model stage"
    )
    system: str | None = Field(
        default=None, description="system message, as the reward model was trained to read it"
    )
    thinking: bool | None = Field(
        default=None, description="thinking switch of the prompt, where the problem has none"
    )

    @cached_property
    def loaded(self) -> tuple[Chat, value_head.ScalarModel]:
        """The tokenizer and the reward model."""
        try:
            directory = pretrained.resolve(self.model)
            model = value_head.load(directory)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            return Chat.load(directory), model.eval().requires_grad_(False)
        except ModelError as failure:
            raise RewardError(f"reward learned: {failure}") from None

    def tokens(self, problem: Problem, text: str, ended: bool = True) -> list[int]:
        """Prompt and response [n] as the reward model reads them.

        Raises DataError for a character without a token.
        """
        chat, _ = self.loaded
        thinking = problem.meta.get("thinking", self.thinking)
        prompt = chat.prompt(problem, thinking=thinking, system=self.system)
        response = chat.response(text.removeprefix(prompt.begun))
        return [*prompt.tokens, *(response if ended else response[:-1])]

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N responses -> N scores; an error where the tokenizer cannot read one or
        it is too long.
        """
        _, model = self.loaded
        ended = [True] * len(texts) if samples is None else [s.finish == "stop" for s in samples]
        rows: list[list[int] | None] = []
        for problem, text, whole in zip(problems, texts, ended, strict=True):
            try:
                row = self.tokens(problem, text, whole)
            except DataError:
                row = None
            rows.append(row if row and len(row) <= model.body.config.max_positions else None)
        values = iter(value_head.score(model, [row for row in rows if row]))
        reason = f"{self.model} cannot read it: a character without a token, or too long"
        unread = Score(0.0, "error", reason=reason)
        return [unread if row is None else Score(next(values)) for row in rows]
