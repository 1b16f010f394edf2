"""A reward model's score: what `reward_model` stages train, or any sequence classifier with one
label in Hugging Face's format.
"""

from collections.abc import Sequence
from functools import cached_property

import torch

from whet.chat import Chat
from whet.errors import DataError, ModelError, RewardError
from whet.model import pretrained, value_head
from whet.types import Problem, Sample, Score


class LearnedReward:
    """The score of the last token of prompt and response, end of turn included unless the response
    was cut off.

    `model` is a directory or a Hub id; in a recipe also the name of an earlier reward_model stage.
    It is loaded when it is first asked, so that a stage can make it. `system` and `thinking` (where
    the problem's meta does not say) are the prompt's, as the model was trained to read it. Packs,
    not padding: a score does not depend on what else is scored. Raises RewardError, in one line,
    where it cannot be loaded.
    """

    def __init__(self, model: str, system: str | None = None, thinking: bool | None = None) -> None:
        if not isinstance(model, str) or not model:
            raise RewardError(
                f"reward learned: model = {model!r}; it must name a stage, a directory or a Hub id"
            )
        self.name, self.system, self.thinking = model, system, thinking

    @cached_property
    def held(self) -> tuple[Chat, value_head.ScalarModel]:
        try:
            directory = pretrained.resolve(self.name)
            model = value_head.load(directory)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            return Chat.load(directory), model.eval().requires_grad_(False)
        except ModelError as failure:
            raise RewardError(f"reward learned: {failure}") from None

    def tokens(self, problem: Problem, text: str, ended: bool = True) -> list[int]:
        """Prompt and response [n] as the reward model reads them. Raises DataError for what its
        tokenizer has no token for.
        """
        chat = self.held[0]
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
        """N problems and N completion texts -> N scores; an error where the tokenizer cannot read
        one or it is too long.
        """
        ended = [True] * len(texts) if samples is None else [s.finish == "stop" for s in samples]
        rows: list[list[int] | None] = []
        for problem, text, whole in zip(problems, texts, ended, strict=True):
            try:
                row = self.tokens(problem, text, whole)
            except DataError:
                row = None
            rows.append(row if row and len(row) <= self.held[1].body.config.max_positions else None)
        found = iter(value_head.score(self.held[1], [row for row in rows if row]))
        lost = Score(
            0.0,
            "error",
            reason=f"{self.name} cannot read it: a character without a token, or too long",
        )
        return [lost if row is None else Score(next(found)) for row in rows]
