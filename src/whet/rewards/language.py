"""Pays for thinking in one language: the share of the thinking's words in that language's script
(arXiv:2501.12948, sec. 2.3.2).

Scripts are Unicode's, so languages that share one (English and French) are not told apart.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from whet.errors import RewardError, did_you_mean
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
_SPOKEN = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")
_PROSE = re.compile(r"(?<!\\)\b[^\W\d_]{3,}\s+[^\W\d_]{2,}\b")
_COMMAND = re.compile(r"\\[A-Za-z]+|</?[A-Za-z][\w-]*>|https?://\S+")


class LanguageReward:
    """The share, 0 to 1, of the words between `<think>` and `</think>` whose letters are in the
    script of `language` ("en", "zh" …).

    A word is a run of letters of one script; where words are not spaced (Chinese, Japanese, Thai)
    each letter is one. Not counted: numbers, single letters (variables), LaTeX commands, and
    formulas in which nothing is said. Without a `</think>` the whole response is the thinking; a
    thinking without words pays 0. Raises RewardError for a language that is not known.

    >>> english = LanguageReward("en")
    >>> english.share("<think>six times 七 is 42</think>42"), english.share("<think>6*7</think>42")
    (0.75, 0.0)
    """

    name = "language"

    def __init__(self, language: str = "en", think: str = "think") -> None:
        if not isinstance(language, str) or language not in SCRIPTS:
            raise RewardError(
                f"reward language: unknown language {language!r}{did_you_mean(str(language), SCRIPTS)}"
            )
        if not isinstance(think, str) or not re.fullmatch(r"[A-Za-z][\w-]*", think):
            raise RewardError(
                f"reward language: {think!r} cannot be a tag; give a word such as 'think'"
            )
        self.scripts, self.tag = SCRIPTS[language], think

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N completion texts -> N scores; the problems do not matter."""
        return [Score(self.share(text)) for text in texts]

    def share(self, text: str) -> float:
        found = words(thinking(text, self.tag))
        return sum(script in self.scripts for script in found) / len(found) if found else 0.0


def thinking(text: str, tag: str = "think") -> str:
    """What stands before the last closing tag, without the opening one; the whole where nothing
    closes.
    """
    before, end, after = text.rpartition(f"</{tag}>")
    return (before if end else after).replace(f"<{tag}>", " ").replace(f"</{tag}>", " ")


def words(text: str) -> list[str]:
    """The script of each word.

    >>> words("Let $x^2 = 4$, so x ist два 或者 \\\\frac{1}{2}")
    ['LATIN', 'LATIN', 'LATIN', 'CYRILLIC', 'CJK', 'CJK']
    """
    text = unicodedata.normalize("NFKC", _COMMAND.sub(" ", _FORMULA.sub(_said, text)))
    found: list[str] = []
    run, length = "", 0  # the script of the letters just read, and how many
    for character in text + " ":
        current = script(character)
        if current == "MARK" and run:
            length += run not in UNSPACED  # a letter with its vowel sign is a word
            continue
        if current != run or current in UNSPACED:
            if run and (length > 1 or run in UNSPACED):
                found.append(run)
            run, length = ("" if current == "MARK" else current), 0
        length += 1
    return found


def _said(match: re.Match[str]) -> str:
    """Of a formula, what it says in words: all of it where it is prose, else its texts."""
    inside = next(group for group in match.groups() if group is not None)
    spoken = " ".join(_SPOKEN.findall(inside))
    return f" {inside} " if _PROSE.search(_SPOKEN.sub(" ", inside)) else f" {spoken} "


@lru_cache(maxsize=1 << 16)
def script(character: str) -> str:
    """The script of a letter, as its Unicode name begins; MARK for what modifies a letter, empty
    for anything else.

    >>> script("é"), script("ж"), script("七"), script("7")
    ('LATIN', 'CYRILLIC', 'CJK', '')
    """
    category = unicodedata.category(character)
    if category[0] == "M":
        return "MARK"
    if category[0] != "L":
        return ""
    return unicodedata.name(character, "").partition(" ")[0]
