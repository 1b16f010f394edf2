"""The language reward: shares worked by hand, and what must not count as language."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.errors import RewardError
from whet.rewards.language import SCRIPTS, LanguageReward, script, thinking, words


def share(language: str, text: str) -> float:
    return LanguageReward(language=language).share(text)


@pytest.mark.parametrize(
    ("language", "text", "value"),
    [
        ("en", "<think>so the sum is even</think>42", 1.0),
        ("en", "<think>so 那么 the sum</think>42", 3 / 5),
        ("zh", "<think>那么 the sum 是偶数</think>42", 5 / 7),
        ("zh", "<think>设 $x + y = 4$，所以 \\frac{1}{2} 成立</think>", 1.0),
        ("ru", "<think>Сумма чётна, so done</think>", 2 / 4),
        ("ja", "<think>答えはカタカナー。</think>", 1.0),
        ("ko", "<think>합은 짝수 sum</think>", 2 / 3),
        ("el", "<think>το άθροισμα sum</think>", 2 / 3),
        ("ar", "<think>المجموع زوجي sum</think>", 2 / 3),
        ("he", "<think>הסכום זוגי</think>", 1.0),
        ("hi", "<think>योग सम है sum</think>", 3 / 4),
        ("en", "<think>naïve café re\u0301sume\u0301</think>", 1.0),
        ("en", "<think>don't</think>", 1.0),
        ("en", "<think>ｔｈｅ 𝐬𝐮𝐦 и</think>", 1.0),
        ("en", "<think>6 * 7 = 42</think>", 0.0),
        ("en", "<think></think>all of this is said after it", 0.0),
        ("en", "", 0.0),
        ("en", "<think>an unfinished 思考", 2 / 4),
        ("en", "no tags at all", 1.0),
    ],
)
def test_shares_worked_by_hand(language: str, text: str, value: float) -> None:
    assert share(language, text) == pytest.approx(value)


def test_only_the_thinking_counts() -> None:
    assert share("en", "<think>the sum is even</think>答案是四十二") == 1.0
    assert share("zh", "<think>the sum is even</think>答案是四十二") == 0.0
    assert (
        share("en", "<think>one</think> 二三四 </think>x") == 0.25
    )  # the last closing tag ends it
    assert (
        LanguageReward(language="en", think="reasoning").share("<reasoning>one 二</reasoning>三四")
        == 0.5
    )


@pytest.mark.parametrize(
    "hiding",
    ["$so the sum is even$", "$$so the sum is even$$", "\\(so the sum is even\\)",
     "\\[so the sum is even\\]", "$\\text{so the sum is even}$",
     "```so the sum is even```", "`so the sum is even`",
     "ｓｏ ｔｈｅ ｓｕｍ ｉｓ ｅｖｅｎ", "𝐬𝐨 𝐭𝐡𝐞 𝐬𝐮𝐦 𝐢𝐬 𝐞𝐯𝐞𝐧"],
)  # fmt: skip
def test_words_cannot_hide_in_formulas_or_fancy_letters(hiding: str) -> None:
    assert share("zh", f"<think>总和是偶数 {hiding}</think>") == pytest.approx(0.5)


def test_formulas_variables_and_numbers_are_no_language() -> None:
    assert words(
        "$x^2 + \\sin(y) = 4$ and \\(a\\) x y 42 \\frac{a}{b} https://example.org/a/b"
    ) == ["LATIN"]
    assert words("") == []


@given(st.text(max_size=300), st.sampled_from(sorted(SCRIPTS)))
def test_any_text_has_a_share(text: str, language: str) -> None:
    assert 0.0 <= share(language, text) <= 1.0
    assert share(language, text) == share(language, f"<think>{text}") or "<" in text


def test_a_long_text_takes_no_time() -> None:
    for text in (
        "$" * 20_000,
        "\\(" * 10_000,
        "\\text{" * 10_000,
        "ab " * 20_000,
        "ﷺ" * 5_000,
        "</" * 10_000,
    ):
        assert 0.0 <= share("en", text) <= 1.0


def test_scripts_come_from_unicode() -> None:
    assert [script(c) for c in "aЖ한あ़1 "] == [
        "LATIN",
        "CYRILLIC",
        "HANGUL",
        "HIRAGANA",
        "MARK",
        "",
        "",
    ]
    assert thinking("a<think>b</think>c</think>d").split() == ["a", "b", "c"]


def test_faults_are_one_line() -> None:
    with pytest.raises(RewardError, match="unknown language 'xx'; known: "):
        LanguageReward(language="xx")
    with pytest.raises(RewardError, match="cannot be a tag"):
        LanguageReward(language="en", think="<think>")
