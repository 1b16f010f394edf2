"""Many programs for one problem, without its tests: cluster them by their outputs, rerank, submit
a few (o1-ioi; arXiv:2502.06807, sec. 3).

All programs run in the sandbox of a `CodeReward`, on inputs that a generator wrote.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whet.errors import RewardError
from whet.rewards.code.verifier import ENTRY, CodeReward

Outputs = tuple[str | None, ...]  # a key for each input's output, None where there is none


@dataclass(frozen=True, slots=True)
class Cluster:
    """Programs, by position, whose outputs agree on every input."""

    outputs: Outputs
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """A program against a brute-force one: the number of inputs compared, and the positions of
    those on which the two differ.
    """

    compared: int
    differs: tuple[int, ...]

    @property
    def agrees(self) -> bool:
        """Whether there was anything to compare and no difference."""
        return self.compared > 0 and not self.differs


def outputs(
    reward: CodeReward, programs: Sequence[str], inputs: Sequence[Any], entry: str | None = None
) -> list[Outputs]:
    """N programs on I inputs -> N tuples of I keys; equal keys mean equal outputs.

    An input is the text of standard input, or with `entry` the list of arguments of that function.
    Raises RewardError where the sandbox fails, and for inputs of the wrong kind.
    """
    input_type = str if entry is None else list
    if not inputs or not all(isinstance(value, input_type) for value in inputs):
        kinds = "texts" if entry is None else "lists of arguments"
        raise RewardError(f"programs: inputs must be {kinds}, at least one")
    if entry is not None and not ENTRY.fullmatch(entry):
        raise RewardError(
            f"programs: entry {entry!r} is not of the form f, Class.method or Class().method"
        )
    kind = "stdio" if entry is None else "call"
    work = {"do": "outputs", "kind": kind, "entry": entry, "share": True, "inputs": list(inputs)}
    rows: list[Outputs] = []
    for result in reward.pool.map([{**work, **reward.limits, "program": p} for p in programs]):
        if result.status == "error" or (result.value and "error" in result.value):
            raise RewardError(f"programs: {result.message or result.value['error']}")
        rows.append(tuple(result.value["keys"]) if result.status == "ok" else (None,) * len(inputs))
    return rows


def clusters(outputs: Sequence[Outputs]) -> list[Cluster]:
    """Clusters of programs with equal outputs, the largest first, then by first member. Programs
    without any output are left out.

    >>> [c.members for c in clusters([("a", "b"), ("a", "c"), ("a", "b"), (None, None)])]
    [(0, 2), (1,)]
    """
    members: dict[Outputs, list[int]] = {}
    for i, keys in enumerate(outputs):
        if any(key is not None for key in keys):
            members.setdefault(keys, []).append(i)
    whole = [Cluster(keys, tuple(positions)) for keys, positions in members.items()]
    return sorted(whole, key=lambda cluster: (-len(cluster.members), cluster.members[0]))


def rerank(
    groups: Sequence[Cluster], scores: Sequence[float] | None = None, failing: float = 1.0
) -> list[Cluster]:
    """Clusters, best first: the share of programs that agree, plus the members' mean score, less
    `failing` × the share of inputs without output.

    `scores` are one number a program (public tests passed, a learned scorer). arXiv:2502.06807
    (app. C.1) adds such terms with weights fitted by random search; here they are 1 unless
    `failing` says otherwise.

    >>> groups = clusters([("a",), ("a",), ("b",)])
    >>> [c.members for c in rerank(groups, scores=[0.0, 0.0, 1.0])]
    [(2,), (0, 1)]
    """
    whole = sum(len(cluster.members) for cluster in groups)

    def worth(cluster: Cluster) -> float:
        size = len(cluster.members)
        mean = 0.0 if scores is None else sum(scores[i] for i in cluster.members) / size
        silent = cluster.outputs.count(None) / len(cluster.outputs)
        return size / whole + mean - failing * silent

    return sorted(groups, key=lambda cluster: (-worth(cluster), cluster.members[0]))


def submissions(
    groups: Sequence[Cluster], limit: int, scores: Sequence[float] | None = None
) -> list[int]:
    """At most `limit` programs to submit: round-robin over the clusters in their order, from each
    its best program not yet taken.

    o1-ioi's limit was 50 a problem. Raises RewardError for a limit below 1.

    >>> submissions(clusters([("a",), ("a",), ("b",), ("a",)]), limit=3)
    [0, 2, 1]
    """
    if limit < 1:
        raise RewardError(f"programs: limit {limit} must be at least 1")
    queues = [
        sorted(c.members, key=lambda i: (-scores[i] if scores is not None else 0.0, i))
        for c in groups
    ]
    rounds = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(rounds) for queue in queues if turn < len(queue)][:limit]


def cross_check(
    reward: CodeReward,
    candidates: Sequence[str],
    brute: str,
    inputs: Sequence[Any],
    entry: str | None = None,
) -> list[Check]:
    """N programs against a slow and surely right one, on small inputs (as o3 checked itself:
    arXiv:2502.06807, sec. 4).

    Inputs on which the brute-force program has no output are left out. A candidate without output
    on any other input differs there.
    """
    slow, *fast = outputs(reward, [brute, *candidates], inputs, entry)
    known = [i for i, key in enumerate(slow) if key is not None]
    return [Check(len(known), tuple(i for i in known if keys[i] != slow[i])) for keys in fast]


def majority(outputs: Sequence[Outputs]) -> Outputs:
    """For each input the output of most programs, the first where several tie; None without any.

    >>> majority([("a", "x"), ("b", None), ("a", "y")])
    ('a', 'x')
    """
    columns = [[key for key in column if key is not None] for column in zip(*outputs, strict=True)]
    return tuple(Counter(column).most_common(1)[0][0] if column else None for column in columns)
