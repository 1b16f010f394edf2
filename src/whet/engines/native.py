"""The native engine: samples from whet's own decoder, the very module that is trained.

A prompt is read once for all samples of its group. Samples are drawn in rows side by side; a row
whose sample has ended goes to a sample that waits.
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

AHEAD = 32  # tokens for which uniform numbers are made at a time
PREFILL = 8192  # tokens of prompts in one forward pass, about


class NativeEngine:
    """Samples from `model` with its weights at the time of the call.

    `version` is stamped on samples; at most `rows` samples are drawn at once. generate raises
    DataError and WhetError as `Requests` does, and ModelError where logits are not finite.
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
        self.model, self.chat, self.eos = model, chat, tuple(eos)
        self.rows, self.version = rows, version

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[tuple[Sample, ...]]:
        """Returns `sampling.n` samples for each of P prompts; `progress` gets (ended, total)."""
        requests = self.requests(prompts, sampling)
        if not requests.total:
            return []
        with evaluating(self.model), folded(self.model), ready(self.model):
            notes = _Sampler(self.model, requests, self.eos, self.rows).run(progress)
        return notes.samples(self.eos, self.chat, self.version)

    def requests(self, prompts: Sequence[Prompt], sampling: Sampling) -> Requests:
        """Checks prompts and sampling, and returns what is to be drawn."""
        return Requests(prompts, sampling, self.model.config.vocab, self.model.config.max_positions)


class _Sampler:
    """One call of `generate`: R rows, of which row r draws sample number `numbers[r]`."""

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
        self.every = 1 if self.device.type == "cpu" else 8  # steps between checks for ended samples
        self.chunk = rows_at_once(model.config.vocab, self.device.type)
        # (prompt, seat, hidden) of a group of which some samples still wait.
        self.partial: tuple[int, int, Tensor] | None = None
        self.step = 0
        # Per row: the sample's number, the step of its first token, the state that the next token
        # is drawn from, the next token's position, and whether the sample has ended.
        self.numbers = np.zeros(0, dtype=np.int64)
        self.begun = np.zeros(0, dtype=np.int64)
        self.hidden = weight.new_zeros(0, model.config.hidden)
        self.positions = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.ended = torch.zeros(0, dtype=torch.bool, device=self.device)
        self.admit(np.arange(min(rows, requests.total)))
        self.settle()

    def run(self, progress: Progress | None) -> Notes:
        """Draws a token per row and step until all samples have ended."""
        total, reported = self.requests.total, 0
        broken: list[Tensor] = []  # per step since the last check: the rows with broken logits
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
            if progress is not None and done > reported:
                reported = done
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
        """Returns tokens [R], their log-probabilities [R], and which rows [R] have broken logits."""
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
        """Raises ModelError where a logit of the last steps was not finite."""
        bad = torch.stack(list(broken))
        if bool(bad.any()):
            past, row = (int(x) for x in bad.nonzero()[0])
            step = self.step - (len(broken) - 1 - past)
            raise self.requests.not_finite(int(self.numbers[row]), step - int(self.begun[row]))

    def turn_over(self) -> None:
        """Gives the rows of ended samples to samples that wait, and drops those left over."""
        free = self.ended.nonzero().squeeze(1).cpu().numpy()
        admitted = min(len(free), len(self.waiting))
        if admitted:
            self.admit(free[:admitted])
        if admitted < len(free):
            self.drop(free[admitted:])
        self.settle()

    def drop(self, rows: NDArray[np.int64]) -> None:
        """Drops rows; the last rows that stay move into their places."""
        stay = len(self.numbers) - len(rows)
        sources = np.setdiff1d(np.arange(stay, len(self.numbers)), rows)
        targets = rows[rows < stay]
        self.cache.move(sources, targets, stay)
        self.numbers[targets], self.begun[targets] = self.numbers[sources], self.begun[sources]
        self.numbers, self.begun = self.numbers[:stay], self.begun[:stay]
        old, new = (torch.from_numpy(x).to(self.device) for x in (sources, targets))
        for state in (self.hidden, self.positions, self.ended):
            state[new] = state[old]
        self.hidden, self.positions = self.hidden[:stay], self.positions[:stay]
        self.ended = self.ended[:stay]

    def settle(self) -> None:
        """Brings cache, notes, limits and random numbers in line with the present rows."""
        self.cache.arrange()
        self.notes.rows(self.numbers)
        due = self.begun + self.requests.limits[self.numbers] - 1
        self.first_due = int(due.min())
        self.due = torch.from_numpy(due).to(self.device)
        self.make_uniforms()

    def make_uniforms(self) -> None:
        """Makes the rows' random numbers for the next AHEAD tokens."""
        block = uniforms(self.requests.keys[self.numbers], self.step - self.begun, AHEAD)
        self.u = torch.from_numpy(np.ascontiguousarray(block.T)).to(self.device)  # [AHEAD, R]
        self.made = self.step

    def admit(self, rows: NDArray[np.int64]) -> None:
        """Starts the next waiting samples in `rows`: all of them new, or all of them free."""
        numbers, self.waiting = self.waiting[: len(rows)], self.waiting[len(rows) :]
        prompts = numbers // self.sampling.n
        seat, hidden = self.read(prompts, rows)
        half = len(self.waiting) > 0 and self.waiting[0] // self.sampling.n == prompts[-1]
        self.partial = (int(prompts[-1]), int(seat[-1]), hidden[-1]) if half else None
        self.cache.admit_rows(rows, seat)
        positions = torch.from_numpy(self.requests.lengths[prompts]).to(self.device)
        if not len(self.numbers):
            self.numbers, self.begun = numbers, np.zeros_like(numbers)
            self.hidden, self.positions = hidden, positions
            self.ended = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
            return
        self.numbers[rows], self.begun[rows] = numbers, self.step
        index = torch.from_numpy(rows).to(self.device)
        self.hidden[index], self.positions[index], self.ended[index] = hidden, positions, False

    def read(
        self, prompts: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Tensor]:
        """Returns each prompt's seat [k] and the state [k, hidden] after its last token.

        A prompt that has no seat yet is read now. `rows` are the rows that will draw from the
        prompts; the seats of their former samples are free.
        """
        order = list(dict.fromkeys(prompts.tolist()))
        known, seats, ends = [], [], []
        if self.partial is not None and self.partial[0] == order[0]:
            known, seats, ends = order[:1], [np.array([self.partial[1]])], [self.partial[2][None]]
        new = order[len(known) :]
        if new:
            others = np.delete(self.cache.seat, rows[rows < len(self.cache.seat)])
            used = np.append(others, [int(s[0]) for s in seats])
            free = np.setdiff1d(np.arange(len(self.cache.lengths)), used).tolist()
            lengths = [len(self.requests.prompts[i].tokens) for i in new]
            taken = self.cache.admit_prompts(lengths, free)
            seats.append(taken)
            ends += self.prefill(new, taken)
        place = {prompt: i for i, prompt in enumerate(order)}
        which = np.array([place[i] for i in prompts.tolist()], dtype=np.int64)
        index = torch.from_numpy(which).to(self.device)
        return np.concatenate(seats)[which], torch.cat(ends)[index]

    def prefill(self, prompts: Sequence[int], seats: NDArray[np.int64]) -> list[Tensor]:
        """Reads prompts in packs of about PREFILL tokens.

        Returns the states after their last tokens, a tensor [prompts, hidden] per pack.
        """
        lengths = self.requests.lengths[list(prompts)]
        pack = (np.cumsum(lengths) - lengths) // PREFILL
        ends: list[Tensor] = []
        for i in np.unique(pack).tolist():
            inside = np.flatnonzero(pack == i)
            starts = torch.from_numpy(np.append(0, np.cumsum(lengths[inside]))).to(self.device)
            pack_tokens = [self.requests.prompts[prompts[j]].tokens for j in inside.tolist()]
            tokens, positions = (
                torch.from_numpy(x).to(self.device)
                for x in (
                    np.concatenate(pack_tokens).astype(np.int64),
                    np.concatenate([np.arange(n) for n in lengths[inside]]),
                )
            )
            hidden = self.model(tokens, positions, self.cache.prefill(starts, seats[inside]))
            ends.append(hidden[starts[1:] - 1])
        return ends
