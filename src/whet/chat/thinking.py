"""Thinking as text: what a prompt has begun of it because of the template's switch, and what is
left to say then.
"""

import re

from whet.errors import DataError
from whet.types import Prompt

_BEGUN = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


def begun(rendered: str) -> str:
    """The thinking with which a rendered prompt ends, open or shut and empty; "" where it ends
    otherwise.

    >>> begun("<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n"), begun("2+2=<think>"), begun("<think>2</think>")
    ('<think>\\n\\n</think>\\n\\n', '<think>', '')
    """
    found = _BEGUN.search(rendered)
    return found.group() if found else ""


def left(prompt: Prompt, response: str) -> str:
    """What of a whole answer follows the prompt: all but what the prompt has begun; with thinking
    off all but the thinking.

    An answer that does not repeat what the prompt has opened is what follows it already. Raises
    DataError where nothing follows the thinking.
    """
    if prompt.begun and response.startswith(prompt.begun):
        return response[len(prompt.begun) :]
    if "</think>" not in prompt.begun and prompt.problem.meta.get("thinking") is not False:
        return response.removeprefix("<think>") if prompt.begun else response
    thought, end, after = response.rpartition("</think>")
    said = after.lstrip() if end else thought + after
    if not said or said.startswith("<think>"):
        raise DataError(
            f"{prompt.id}: nothing follows the thinking, so with thinking off there is nothing to train on"
        )
    return said
