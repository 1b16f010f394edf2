"""Whether two answers are the same mathematics, by math-verify. Runs only in a worker of
`sandbox.pool`.

sympy may hang, hold the interpreter's lock or exhaust memory on a model's text; in a worker only
the worker suffers.
"""

from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

_WHOLE = [LatexExtractionConfig(boxed_match_priority=0)]


def parsed(latex: str) -> list[Any]:
    """The meaning of `latex` as a whole; empty where it has none."""
    return parse(
        f"\\boxed{{{latex}}}",
        extraction_config=_WHOLE,
        fallback_mode="no_fallback",
        parsing_timeout=None,  # type: ignore[arg-type]
    )


_gold = lru_cache(maxsize=4096)(parsed)


def verdict(pair: list[str]) -> str:
    """[gold, answer], both LaTeX -> same | different, or the one that means nothing: gold | answer."""
    gold = _gold(pair[0])
    if not any(not isinstance(part, str) for part in gold):
        return "gold"
    answer = parsed(pair[1])
    if not any(not isinstance(part, str) for part in answer):
        return "answer"
    equal = verify(
        gold,
        answer,
        float_rounding=10,
        allow_set_relation_comp=True,
        timeout_seconds=None,
        raise_on_error=True,
    )
    return "same" if equal else "different"


# The first pair builds parsers and caches: it belongs to the worker's start, not to an item.
verdict(["\\frac{x+1}{2}", "0.5x+0.5"])
