"""The language reward: the share of the thinking's words in one language's script
(arXiv:2501.12948, sec. 2.3.2).

Scripts are Unicode's, so languages that share a script (English and French) count as one.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, Field

from whet.errors import did_you_mean
from whet.rewards.base import RewardOptions
from whet.rewards.format import Tag
from whet.types import Problem, Sample, Score

_LANGUAGES = {
    "LATIN": "en de fr es it pt nl pl cs sv da no fi hu ro tr vi id",
    "CYRILLIC": "ru uk bg sr",
    "ARABIC": "ar fa ur",
    "DEVANAGARI": "hi mr ne",
    "CJK": "zh ja",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "KATAKANA-HIRAGANA": "ja",
    "HANGUL": "ko",
    "GREEK": "el",
    "HEBREW": "he",
    "THAI": "th",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
}
SCRIPTS = {
    language: {script for script, languages in _LANGUAGES.items() if language in languages.split()}
    for language in " ".join(_LANGUAGES.values()).split()
}
# Scripts that put no space between words: every letter counts as a word.
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR"}

_FORMULA = re.compile(
    r"\$\$([^$]{1,2000})\$\$|\$([^$\n]{1,400})\$|\\\((.{1,400}?)\\\)|\\\[(.{1,2000}?)\\\]",
    re.DOTALL,
)
_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")
_PROSE = re.compile(r"(?<!\\)\b[^\W\d_]{3,}\s+[^\W\d_]{2,}\b")
_COMMAND = re.compile(r"\\[A-Za-z]+|</?[A-Za-z][\w-]*>|https?://\S+")


def _known(language: str) -> str:
    if language not in SCRIPTS:
        raise ValueError(f"unknown language {language!r}{did_you_mean(language, SCRIPTS)}")
    return language


class LanguageReward(RewardOptions):
    """The share, 0 to 1, of the thinking's words whose letters are in the script of `language`.

    A word is a run of letters of one script; where words are not spaced (Chinese, Japanese, Thai)
    each letter is one. Numbers, single letters (variables), LaTeX commands, and formulas without
    prose do not count. Without a `</think>` the whole response is the thinking; a thinking without
    words pays 0.

    >>> english = LanguageReward(language="en")
    >>> english.share("<think>six times 七 is 42</think>42"), english.share("<think>6*7</think>42")
    (0.75, 0.0)
    """

    owner = "reward language"
    language: Annotated[str, AfterValidator(_known)] = Field(
        default="en", description="two letters: " + ", ".join(SCRIPTS)
    )
    think: Tag = Field(default="think", description="tag around the thinking")

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N completion texts -> N scores; the problems do not matter."""
        return [Score(self.share(text)) for text in texts]

    def share(self, text: str) -> float:
        scripts = words(thinking(text, self.think))
        matching = sum(script in SCRIPTS[self.language] for script in scripts)
        return matching / len(scripts) if scripts else 0.0


def thinking(text: str, tag: str = "think") -> str:
    """The text before the last closing tag, without its tags; all of it where no tag closes."""
    before, end, after = text.rpartition(f"</{tag}>")
    return (before if end else after).replace(f"<{tag}>", " ").replace(f"</{tag}>", " ")


def words(text: str) -> list[str]:
    """The script of each word.

    >>> words("Let $x^2 = 4$, so x ist два 或者 \\\\frac{1}{2}")
    ['LATIN', 'LATIN', 'LATIN', 'CYRILLIC', 'CJK', 'CJK']
    """
    text = unicodedata.normalize("NFKC", _COMMAND.sub(" ", _FORMULA.sub(_prose, text)))
    scripts: list[str] = []
    run, length = "", 0  # the script of the letters just read, and how many
    for character in text + " ":
        current = script(character)
        if current == "MARK" and run:
            length += run not in UNSPACED  # a letter with its vowel sign is a word
            continue
        if current != run or current in UNSPACED:
            if run and (length > 1 or run in UNSPACED):
                scripts.append(run)
            run, length = ("" if current == "MARK" else current), 0
        length += 1
    return scripts


def _prose(match: re.Match[str]) -> str:
    """The words of a formula: all of it where it is prose, else its `\\text{…}`."""
    inside = next(group for group in match.groups() if group is not None)
    texts = " ".join(_TEXT.findall(inside))
    return f" {inside} " if _PROSE.search(_TEXT.sub(" ", inside)) else f" {texts} "


@lru_cache(maxsize=1 << 16)
def script(character: str) -> str:
    """The script of a letter, as its Unicode name begins; MARK for a sign that modifies a letter,
    empty for anything else.

    >>> script("é"), script("ж"), script("七"), script("7")
    ('LATIN', 'CYRILLIC', 'CJK', '')
    """
    category = unicodedata.category(character)
    if category[0] == "M":
        return "MARK"
    if category[0] != "L":
        return ""
    return unicodedata.name(character, "").partition(" ")[0]
