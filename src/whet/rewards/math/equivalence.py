"""Whether two answers are the same mathematics, by math-verify. Runs in a worker of
`sandbox.pool` and nowhere else.

sympy may hang, hold the interpreter's lock or exhaust memory on what a model wrote; here only the
worker suffers.
"""

from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

_WHOLE = [LatexExtractionConfig(boxed_match_priority=0)]


def parsed(latex: str) -> list[Any]:
    """What `latex` means, the whole of it; empty where it means nothing."""
    return parse(
        f"\\boxed{{{latex}}}",
        extraction_config=_WHOLE,
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )  # type: ignore[arg-type]


_gold = lru_cache(maxsize=4096)(parsed)


def verdict(pair: list[str]) -> str:
    """[gold, answer], both LaTeX -> same | different | gold (it means nothing) | answer (it means
    nothing).
    """
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


verdict(
    ["\\frac{x+1}{2}", "0.5x+0.5"]
)  # the first pair builds parsers and caches: part of the start, not of an item
