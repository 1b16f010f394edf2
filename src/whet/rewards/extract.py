"""Where a response states its final answer. The text is searched, never evaluated.

The marks of an answer, strongest first: the last `<answer>…</answer>`, the last `\\boxed{…}`, the
last `####`, the last "answer is …" or "answer: …", the last formula or number. Only the text after
`</think>` counts; a response that is still thinking has no answer.
"""

import re

TAIL = 4000  # characters from the end in which unmarked answers are looked for
LONGEST = 1000  # characters of an answer
MARKS = 20  # boxes tried from the end, should the last ones never close

_SIGN = r"(?:(?<![\w)}\].])[-+−])?"
_FRACTION = r"\\[dt]?frac\s*(?:\{-?[\d.,]+\}\s*\{-?[\d.,]+\}|\d\s*\d)"
_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!,)\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(
    rf"{_SIGN}\s?(?:\\?[$€£¥]\s?)?{_SIGN}(?:{_FRACTION}"
    rf"|(?:{_DIGITS})(?:[eE][-+]?\d{{1,3}}(?!\w))?(?:\s?/\s?\d+(?![\d/]))?)(?:\s?\\?%)?"
)
_PHRASE = re.compile(r"\banswer(?:\s+is\b|\s*:)[\s:*]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?;](?=\s|$)")
_FORMULA = re.compile(
    r"(?<![\\\d])\$\$?([^$\n]{1,200}?)\$\$?(?![\d$])|\\\((.{1,200}?)\\\)|\\\[(.{1,400}?)\\\]",
    re.DOTALL,
)
_PROSE = re.compile(  # two words, or a word before a number that is no function's name
    r"(?<!\\)\b[A-Za-z]{3,}\s+[A-Za-z]{2,}"
    r"|(?<!\\)\b(?!(?:sqrt|sin|cos|tan|log|exp)\b)[A-Za-z]{3,},?\s+[$\d]"
)
_CALCULATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's notes to a calculator


def final_answer(text: str) -> str | None:
    """The final answer in a response, as written, without its markup; None where there is none.

    An empty mark (`\\boxed{}`) is no answer, and neither is a number elsewhere then.

    >>> final_answer("3 * 6 = 18, so \\\\boxed{\\\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    >>> final_answer("<think>maybe 7</think>She makes $1,234 a day.")
    '$1,234'
    >>> final_answer("<think>it must be 7")
    """
    conclusion = concluded(text)
    if conclusion is None:
        return None
    text = _CALCULATION.sub("", conclusion)
    inside = between(text, "<answer>", "</answer>")
    if inside is not None:
        text = inside
    for marked in (boxed(text), hashed(text)):
        if marked is not None:
            return _tidy(marked)
    phrase = None
    for match in _PHRASE.finditer(text, max(0, len(text) - TAIL)):
        phrase = match
    if phrase is not None and (answer := _stated(text[phrase.end() :])):
        return answer
    if inside is not None and not _PROSE.search(inside):
        return _tidy(inside)
    return _last(text)


def concluded(text: str) -> str | None:
    """The text after the last `</think>`; all of it without thinking; None where the thinking has
    not ended.
    """
    before, end, after = text.rpartition("</think>")
    if "<think>" in (after if end else before + after):
        return None
    return after


def between(text: str, start: str, end: str) -> str | None:
    """The text within the last complete `start … end`; None where there is none."""
    stop = text.rfind(end)
    first = text.rfind(start, 0, stop) if stop >= 0 else -1
    return text[first + len(start) : stop] if first >= 0 else None


def boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{…}` or `\\fbox{…}`, braces balanced; of nested ones
    the innermost.

    >>> boxed("\\\\boxed{1} and then \\\\boxed{\\\\frac{1}{2}} but \\\\boxed{3")
    '\\\\frac{1}{2}'
    """
    for match in reversed(list(re.finditer(r"\\f?boxed\s*\{", text))[-MARKS:]):
        depth, start = 1, match.end()
        for brace in re.finditer(r"\\.|[{}]", text[start : start + LONGEST], re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return text[start : start + brace.start()]
    return None


def hashed(text: str) -> str | None:
    """The rest of the line after the last `####`; None where there is none."""
    _, mark, rest = text.rpartition("####")
    return rest.strip().split("\n")[0] if mark else None


def _tidy(answer: str) -> str | None:
    answer = answer.strip().strip("*").strip()
    if answer.endswith(".") and not answer.endswith("\\."):
        answer = answer[:-1].rstrip()
    return answer if answer and len(answer) <= LONGEST else None


def _stated(rest: str) -> str | None:
    """The answer in the text after "answer is": the formula it begins with, the side after the last
    =, or its first number.
    """
    rest = rest.lstrip(" *\n")[:LONGEST]
    formula = _FORMULA.match(rest)
    if formula:
        return _tidy(next(group for group in formula.groups() if group is not None))
    ending = _SENTENCE_END.search(rest)
    sentence = _tidy(rest[: ending.start()] if ending else rest)
    if sentence is None or not _PROSE.search(sentence):
        return sentence
    number = NUMBER.search(sentence.rpartition("=")[2])
    return number.group().strip() if number else None


def _last(text: str) -> str | None:
    """The last formula or number, whichever ends later."""
    tail = text[-TAIL:]
    best: str | None = None
    end = -1
    for match in _FORMULA.finditer(tail):
        content = next(group for group in match.groups() if group is not None)
        if not _PROSE.search(content):
            left, _, right = content.rpartition("=")
            best, end = content if "\\" in left else right, match.end()
    for match in NUMBER.finditer(tail):
        if match.end() > end:
            best, end = match.group(), match.end()
    return _tidy(best) if best is not None else None
