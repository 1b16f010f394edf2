"""Multiple choice: the one letter that a response states last. The text is never evaluated."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from whet.errors import DataError
from whet.rewards.base import RewardOptions, unparsed
from whet.rewards.extract import between, boxed, concluded
from whet.types import Problem, Sample, Score

TAIL = 4000  # characters from the end in which an unmarked choice is looked for
LETTERS = "ABCDE"

_PHRASE = re.compile(
    r"\b(?:answer|choice|option)\b(?:\s+(?:is|would\s+be|must\s+be)\b|\s*:)[\s:*_]*(?:(?:option|choice)\b\s*)?",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"\n|[.!?;](?=\s|$)")
_DRESSING = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}|[$*_`]")


def choice(text: str, letters: str = LETTERS, choices: Sequence[str] = ()) -> str | None:
    """The letter a response ends on; None where it ends on none, or on several at once.

    The marks, strongest first, each the last of its kind: `<answer>…</answer>`, `\\boxed{…}`,
    "answer is …" or "answer: …", a letter in parentheses, a line that is a letter alone. Only the
    text after `</think>` counts. The words of one of the `choices` stand for its letter.

    >>> choice("It looks like (A), but no: the answer is (C).")
    'C'
    >>> choice("The answer is A, B or C"), choice("A cat sat.")
    (None, None)
    """
    conclusion = concluded(text)
    if conclusion is None:
        return None
    for marked in (between(conclusion, "<answer>", "</answer>"), boxed(conclusion)):
        if marked is not None:
            deeper = boxed(marked)
            return _named(marked if deeper is None else deeper, letters, choices)
    tail = _undressed(conclusion[-TAIL:])
    phrases = list(_PHRASE.finditer(tail))
    if phrases:
        sentence, *rest = _SENTENCE.split(tail[phrases[-1].end() :].strip())
        listed = rest and re.fullmatch(r"\(?[A-Z]\)?", rest[0].strip(" ,"))
        return None if listed else _named(sentence, letters, choices)
    marked = _last(tail, letters)
    return _named(tail, letters, choices) if marked is None and "\n" not in tail.strip() else marked


def _capitals(letters: str) -> str:
    if not re.fullmatch(r"[A-Z]{2,26}", letters) or len({*letters}) < len(letters):
        raise ValueError("give different capitals, such as 'ABCD'")
    return letters


class ChoiceReward(RewardOptions):
    """1 where `choice` finds the letter of the problem's `answer`, else 0: wrong, or unparsed where
    it finds none.

    The answer is a letter ("B", "(B)") or the words of one of `meta["choices"]`. Naming several
    letters at once earns nothing.
    """

    owner = "reward choice"
    letters: Annotated[str, AfterValidator(_capitals)] = Field(
        default=LETTERS, description="letters of the choices; fewer meta choices leave fewer"
    )

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N problems and N responses -> N scores. Raises DataError for an answer that is no
        choice.
        """
        return [self._verdict(problem, text) for problem, text in zip(problems, texts, strict=True)]

    def _verdict(self, problem: Problem, text: str) -> Score:
        choices = problem.meta.get("choices", ())
        if not isinstance(choices, list | tuple) or not all(isinstance(c, str) for c in choices):
            raise DataError(f"problem {problem.id!r}: meta choices must be a list of texts")
        letters = self.letters[: len(choices)] if choices else self.letters
        gold = _named(problem.answer or "", letters, choices)
        if gold is None:
            raise DataError(
                f"problem {problem.id!r}: its answer {problem.answer!r:.60} is none of "
                f"{', '.join(letters)}"
            )
        letter = choice(text, letters, choices)
        if letter is None:
            return unparsed()
        right = letter == gold
        return Score(float(right), "scored" if right else "wrong", {"accuracy": float(right)})


def _named(statement: str, letters: str, choices: Sequence[str]) -> str | None:
    """The one letter that a short statement names: alone, or before its words ("B) Paris", "B,
    because …").
    """
    statement = _undressed(statement).strip()
    by_words = [
        letters[i]
        for i, words in enumerate(choices[: len(letters)])
        if _plain(words) == _plain(statement)
    ]
    if len(by_words) == 1:
        return by_words[0]
    if re.fullmatch(r"\(?[A-Za-z][).:]?", statement):
        statement = statement.upper()
    start = re.match(
        rf"(?:(?:option|choice)\s+)?(?:\(([{letters}])\)|([{letters}])(?![\w'+*/^=-]))",
        statement,
        re.IGNORECASE,
    )
    letter = start and (start.group(1) or start.group(2))
    if not start or not letter or letter not in letters:
        return None
    rest = statement[start.end() :]
    listed = re.match(
        rf"\s*(?:[,;/|&+]|and\b|or\b|to\b|-|\s)\s*(?:and\b|or\b)?\s*\(?[{letters}](?![\w'])", rest
    )
    marked = re.search(rf"\([{letters}]\)|(?<![\w'])[{letters}][).:](?!\w)", rest)
    bare = not rest or not rest[0].isspace()  # "A cat" begins with an article, not with a choice
    commits = start.group(1) or bare or re.match(r"\s*(?:[-:,.]|because\b|since\b|as\b)", rest)
    return letter if commits and not listed and not marked else None


def _last(tail: str, letters: str) -> str | None:
    """The last letter in parentheses or alone on its line; None where several stand side by side,
    or all in order.
    """
    marked = list(
        re.finditer(rf"\(([{letters}])\)|^[ \t]*([{letters}])[.:)]?[ \t]*$", tail, re.MULTILINE)
    )
    if not marked:
        return None
    named = [match.group(1) or match.group(2) for match in marked]
    start = len(named) - 1
    while start > 0 and letters.index(named[start]) == letters.index(named[start - 1]) + 1:
        start -= 1
    if len(named) - start >= 3 and named[start] == letters[0]:
        return None
    if len(marked) > 1 and re.fullmatch(
        r"[\s,;.:/|&)]*(?:and|or)?[\s,]*", tail[marked[-2].end() : marked[-1].start()]
    ):
        return None
    return None if re.match(rf"[\s,;/|&]*[{letters}][).:]", tail[marked[-1].end() :]) else named[-1]


def _undressed(text: str) -> str:
    return _DRESSING.sub(lambda match: match.group(1) or "", text)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .")
