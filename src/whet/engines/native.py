"""The native sampler: whet's own decoder, the very module that is trained, with a cache.

A prompt is read once for all samples of its group; rows that have ended make room for samples that
wait.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whet.engines import ROWS
from whet.engines.cuda_graph import decoding
from whet.engines.requests import Decoder, Notes, Requests, evaluating
from whet.engines.sampling import draw, uniforms
from whet.model.linear import ready
from whet.model.logprobs import rows_at_once
from whet.model.lora import folded
from whet.model.transformer import Transformer
from whet.types import Progress, Prompt, Sample, Sampling

AHEAD = 32  # uniform numbers made at a time, in tokens
PREFILL = 8192  # tokens of prompts read at a time


class NativeEngine:
    """Samples from `model` as it is at the time of the call. `version` is stamped on samples;
    `rows` bounds those alive.

    generate raises DataError and WhetError as `Requests` does, and ModelError where logits are not
    finite.
    """

    def __init__(
        self,
        model: Transformer,
        chat: Decoder,
        eos: Sequence[int],
        rows: int = ROWS,
        version: int = 0,
    ) -> None:
        if rows < 1:
            raise ValueError(f"NativeEngine: rows is {rows}; at least one is needed")
        self.model, self.chat, self.eos, self.rows, self.version = (
            model,
            chat,
            tuple(eos),
            rows,
            version,
        )

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[tuple[Sample, ...]]:
        """P prompts -> P tuples of `sampling.n` samples. `progress(done, total)` counts ended
        samples.
        """
        requests = self.requests(prompts, sampling)
        if not requests.total:
            return []
        with evaluating(self.model), folded(self.model), ready(self.model):
            notes = _Sampler(self.model, requests, self.eos, self.rows).run(progress)
        return notes.samples(self.eos, self.chat, self.version)

    def requests(self, prompts: Sequence[Prompt], sampling: Sampling) -> Requests:
        """What is to be drawn, checked."""
        return Requests(prompts, sampling, self.model.config.vocab, self.model.config.max_positions)


class _Sampler:
    """One call of `generate`. R rows are alive or have just ended; row r draws sample number
    `numbers[r]`.
    """

    def __init__(
        self, model: Transformer, requests: Requests, eos: Sequence[int], rows: int
    ) -> None:
        weight = model.embed.weight
        self.model, self.requests, self.sampling = model, requests, requests.sampling
        self.device = weight.device
        self.waiting = requests.queue()
        most = self.sampling.max_tokens
        self.cache, self.forward = decoding(model, most, int(requests.lengths.max()) + most)
        self.notes = Notes(requests)
        self.stops = torch.zeros(model.config.vocab, dtype=torch.bool, device=self.device)
        self.stops[[e for e in eos if 0 <= e < model.config.vocab]] = True
        self.every = 1 if self.device.type == "cpu" else 8  # steps between looks at what has ended
        self.chunk = rows_at_once(model.config.vocab, self.device.type)
        self.partial: tuple[int, int, Tensor] | None = (
            None  # (prompt, seat, hidden) of a group whose other samples wait
        )
        self.step = 0  # that is taken now; a row's token index is this less its `begun`
        self.numbers = np.zeros(0, dtype=np.int64)  # [R]
        self.begun = np.zeros(0, dtype=np.int64)  # [R]
        self.hidden = weight.new_zeros(
            0, model.config.hidden
        )  # [R, hidden] that the next token is drawn from
        self.positions = torch.zeros(
            0, dtype=torch.int64, device=self.device
        )  # [R] of the next token
        self.ended = torch.zeros(0, dtype=torch.bool, device=self.device)  # [R]
        self.admit(np.arange(min(rows, requests.total)))
        self.settle()

    def run(self, progress: Progress | None) -> Notes:
        total, told = self.requests.total, 0
        broken: list[Tensor] = []
        while True:
            tokens, logp, bad = self.draw()
            self.notes.add(tokens, logp)
            broken.append(bad)
            self.ended |= self.stops[tokens]
            if self.step >= self.first_due:
                self.ended |= self.due <= self.step
            over = 0
            if len(broken) == self.every or self.step >= self.first_due:
                over = int(self.ended.sum())
                self.refuse(broken)
                broken.clear()
            done = total - len(self.waiting) - len(self.numbers) + over
            if progress is not None and done > told:
                told = done
                progress(done, total)
            if done == total:
                return self.notes
            self.cache.open_column()
            self.hidden = self.forward(tokens, self.positions)
            self.positions += 1
            self.cache.column += 1
            self.step += 1
            if over >= max(1, len(self.numbers) // 8):
                self.turn_over()

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [R], their log-probabilities [R], and which rows [R] the model broke in."""
        if self.step == self.made + AHEAD:
            self.make_uniforms()
        u = self.u[self.step - self.made]
        if len(self.hidden) <= self.chunk:
            return draw(self.model.logits(self.hidden), u, self.sampling)
        pairs = zip(self.hidden.split(self.chunk), u.split(self.chunk), strict=True)
        parts = [draw(self.model.logits(hidden), some, self.sampling) for hidden, some in pairs]
        tokens, logp, bad = (torch.cat(x) for x in zip(*parts, strict=True))
        return tokens, logp, bad

    def refuse(self, broken: Sequence[Tensor]) -> None:
        """Raises where a logit of the last steps was not finite."""
        bad = torch.stack(list(broken))
        if bool(bad.any()):
            past, row = (int(x) for x in bad.nonzero()[0])
            step = self.step - (len(broken) - 1 - past)
            raise self.requests.not_finite(int(self.numbers[row]), step - int(self.begun[row]))

    def turn_over(self) -> None:
        """Rows that have ended go to waiting samples; rows that nobody waits for are dropped."""
        free = self.ended.nonzero().squeeze(1).cpu().numpy()
        admitted = min(len(free), len(self.waiting))
        if admitted:
            self.admit(free[:admitted])
        if admitted < len(free):
            self.drop(free[admitted:])
        self.settle()

    def drop(self, rows: NDArray[np.int64]) -> None:
        """The last rows that stay move to where rows go."""
        stay = len(self.numbers) - len(rows)
        sources = np.setdiff1d(np.arange(stay, len(self.numbers)), rows)
        targets = rows[rows < stay]
        self.cache.move(sources, targets, stay)
        self.numbers[targets], self.begun[targets] = self.numbers[sources], self.begun[sources]
        self.numbers, self.begun = self.numbers[:stay], self.begun[:stay]
        old, new = (torch.from_numpy(x).to(self.device) for x in (sources, targets))
        for state in (self.hidden, self.positions, self.ended):
            state[new] = state[old]
        self.hidden, self.positions, self.ended = (
            self.hidden[:stay],
            self.positions[:stay],
            self.ended[:stay],
        )

    def settle(self) -> None:
        """Follows a change of rows."""
        self.cache.arrange()
        self.notes.rows(self.numbers)
        due = self.begun + self.requests.limits[self.numbers] - 1
        self.first_due = int(due.min())
        self.due = torch.from_numpy(due).to(self.device)
        self.make_uniforms()

    def make_uniforms(self) -> None:
        block = uniforms(self.requests.keys[self.numbers], self.step - self.begun, AHEAD)
        self.u = torch.from_numpy(np.ascontiguousarray(block.T)).to(self.device)  # [AHEAD, R]
        self.made = self.step

    def admit(self, rows: NDArray[np.int64]) -> None:
        """The next waiting samples begin in `rows` (all of them new, or all of them free)."""
        numbers, self.waiting = self.waiting[: len(rows)], self.waiting[len(rows) :]
        prompts = numbers // self.sampling.n
        seat, hidden = self.read(prompts, rows)
        half = len(self.waiting) > 0 and self.waiting[0] // self.sampling.n == prompts[-1]
        self.partial = (int(prompts[-1]), int(seat[-1]), hidden[-1]) if half else None
        self.cache.admit_rows(rows, seat)
        positions = torch.from_numpy(self.requests.lengths[prompts]).to(self.device)
        if not len(self.numbers):
            self.numbers, self.begun, self.hidden, self.positions = (
                numbers,
                np.zeros_like(numbers),
                hidden,
                positions,
            )
            self.ended = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
            return
        self.numbers[rows], self.begun[rows] = numbers, self.step
        index = torch.from_numpy(rows).to(self.device)
        self.hidden[index], self.positions[index], self.ended[index] = hidden, positions, False

    def read(
        self, prompts: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Tensor]:
        """The seat [k] of each prompt [k] and the hidden state [k, hidden] after its last token,
        read now unless it is there.

        `rows` are about to be given up by whoever had them.
        """
        order = list(dict.fromkeys(prompts.tolist()))
        known, seats, ends = [], [], []
        if self.partial is not None and self.partial[0] == order[0]:
            known, seats, ends = order[:1], [np.array([self.partial[1]])], [self.partial[2][None]]
        new = order[len(known) :]
        if new:
            used = np.append(
                np.delete(self.cache.seat, rows[rows < len(self.cache.seat)]),
                [int(s[0]) for s in seats],
            )
            free = np.setdiff1d(np.arange(len(self.cache.lengths)), used).tolist()
            given = self.cache.admit_prompts(
                [len(self.requests.prompts[i].tokens) for i in new], free
            )
            seats.append(given)
            ends += self.prefill(new, given)
        place = {prompt: i for i, prompt in enumerate(order)}
        which = np.array([place[i] for i in prompts.tolist()], dtype=np.int64)
        return np.concatenate(seats)[which], torch.cat(ends)[
            torch.from_numpy(which).to(self.device)
        ]

    def prefill(self, prompts: Sequence[int], seats: NDArray[np.int64]) -> list[Tensor]:
        """Reads prompts in packs of about PREFILL tokens; the hidden states after their last
        tokens.
        """
        lengths = self.requests.lengths[list(prompts)]
        pack = (np.cumsum(lengths) - lengths) // PREFILL
        ends: list[Tensor] = []
        for i in np.unique(pack).tolist():
            inside = np.flatnonzero(pack == i)
            starts = torch.from_numpy(np.append(0, np.cumsum(lengths[inside]))).to(self.device)
            tokens = np.concatenate(
                [self.requests.prompts[prompts[j]].tokens for j in inside.tolist()]
            ).astype(np.int64)
            positions = np.concatenate([np.arange(n) for n in lengths[inside]])
            flat, at = (
                torch.from_numpy(tokens).to(self.device),
                torch.from_numpy(positions).to(self.device),
            )
            hidden = self.model(flat, at, self.cache.prefill(starts, seats[inside]))
            ends.append(hidden[starts[1:] - 1])
        return ends
