"""The worker of a user's reward function. The function is imported with this module, so that its
imports cost no answer time or memory.
"""

import json
import os
from typing import Any

import numpy as np

from whet.errors import RewardError
from whet.rewards.custom.function import SPEC_VARIABLE, Failed, UserFunction
from whet.types import Problem, Sample

_refusal = "no function was named"
_function: UserFunction | None = None
if spec_and_options := os.environ.pop(SPEC_VARIABLE, ""):
    try:
        _function = UserFunction(*json.loads(spec_and_options))
    except RewardError as error:
        _refusal = str(error)


def serve(item: dict[str, Any]) -> dict[str, Any]:
    """{problems, texts, samples} -> {scores: [value, status, parts, reason] each}.

    Or {failed: why} for these answers, {refused: why} for all. An item without problems is answered
    by {batched}: whether the function takes many responses at once.
    """
    if _function is None:
        return {"refused": _refusal}
    if not item:
        return {"batched": _function.batched}
    problems = [
        Problem(p["id"], tuple(p["messages"]), p["answer"], p["task"], p["meta"])
        for p in item["problems"]
    ]
    samples = None if item["samples"] is None else [_sample(s) for s in item["samples"]]
    try:
        scores = _function.score(problems, item["texts"], samples)
    except Failed as failure:
        return {"failed": str(failure)}
    except RewardError as failure:
        return {"refused": str(failure)}
    return {"scores": [[s.value, s.status, dict(s.parts), s.reason] for s in scores]}


def _sample(values: dict[str, Any]) -> Sample:
    return Sample(
        np.array(values["tokens"], np.int64),
        np.array(values["mask"], np.bool_),
        np.array(values["logp"], np.float32),
        values["text"],
        values["finish"],
        values["version"],
    )
