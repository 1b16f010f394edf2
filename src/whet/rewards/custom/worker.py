"""What a worker of `own` runs. The function is imported with this module, so that its imports are
no answer's time or memory.
"""

import json
import os
from typing import Any

import numpy as np

from whet.errors import RewardError
from whet.rewards.custom.function import NAMED, CustomReward, Failed
from whet.types import Problem, Sample

_refused = "no function was named"
_reward: CustomReward | None = None
if named := os.environ.pop(NAMED, ""):
    try:
        _reward = CustomReward(*json.loads(named))
    except RewardError as error:
        _refused = str(error)


def serve(item: dict[str, Any]) -> dict[str, Any]:
    """{problems, texts, samples} -> {scores: [value, status, parts] each}, {failed: why} of these
    answers, or {refused: why} of all.

    Of an item without problems, {batched}: whether the function takes many at once.
    """
    if _reward is None:
        return {"refused": _refused}
    if not item:
        return {"batched": _reward.batched}
    problems = [
        Problem(p["id"], tuple(p["messages"]), p["answer"], p["task"], p["meta"])
        for p in item["problems"]
    ]
    samples = None if item["samples"] is None else [_sample(s) for s in item["samples"]]
    try:
        scores = _reward.score(problems, item["texts"], samples)
    except Failed as failure:
        return {"failed": str(failure)}
    except RewardError as failure:
        return {"refused": str(failure)}
    return {"scores": [[s.value, s.status, dict(s.parts), s.reason] for s in scores]}


def _sample(given: dict[str, Any]) -> Sample:
    return Sample(
        np.array(given["tokens"], np.int64),
        np.array(given["mask"], np.bool_),
        np.array(given["logp"], np.float32),
        given["text"],
        given["finish"],
        given["version"],
    )
