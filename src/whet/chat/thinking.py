"""Thinking marks in text: what a prompt begins of an answer, and the rest that an answer adds."""

import re

from whet.errors import DataError
from whet.types import Prompt

_BEGUN = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


def begun(rendered: str) -> str:
    """Returns the thinking at the end of a rendered prompt, open or shut and empty; else "".

    >>> begun("<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n")
    '<think>\\n\\n</think>\\n\\n'
    >>> begun("2+2=<think>"), begun("<think>2</think>")
    ('<think>', '')
    """
    match = _BEGUN.search(rendered)
    return match.group() if match else ""


def left(prompt: Prompt, response: str) -> str:
    """Returns the part of an answer that follows the prompt.

    That is the answer without what the prompt begins, and with thinking off without the thinking.
    An answer that does not repeat what the prompt begins is returned whole. Raises DataError where
    nothing follows the thinking.
    """
    if prompt.begun and response.startswith(prompt.begun):
        return response[len(prompt.begun) :]
    if "</think>" not in prompt.begun and prompt.problem.meta.get("thinking") is not False:
        return response.removeprefix("<think>") if prompt.begun else response
    thought, end, after = response.rpartition("</think>")
    rest = after.lstrip() if end else thought + after
    if not rest or rest.startswith("<think>"):
        raise DataError(
            f"{prompt.id}: nothing follows the thinking, so with thinking off there is nothing to "
            "train on"
        )
    return rest
