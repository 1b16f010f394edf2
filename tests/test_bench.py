"""The bench measures the same work on every side: lengths, prompts, weights, loss and gradient; and
says what it measured.
"""

import json
import statistics
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from whet.algorithms.batch import pack
from whet.bench import compare, peers, roofline, whet_side
from whet.bench.workload import SIZES, WORKLOADS, Workload, prepare, workload
from whet.chat import Chat
from whet.cli.main import main
from whet.errors import WhetError
from whet.model import pretrained
from whet.model.weights import parts
from whet.stages import rl
from whet.training.learner import policy_logprobs
from whet.types import Group, Problem, Prompt, Sample, Score

TINY = Workload(
    "tiny",
    "for tests",
    prompts=4,
    samples=4,
    prompt=5,
    length=6,
    spread=0.8,
    cap=12,
    silent=0.5,
    vocab=40,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "model"
    prepare(TINY, "0.2M", folder)
    return folder


def test_lengths_are_the_same_ones_at_every_step_in_another_order():
    typical = WORKLOADS["typical"]
    first, second = typical.lengths(0), typical.lengths(1)
    assert sorted(first) == sorted(second) and (first != second).any()
    assert 50 < statistics.median(first) < 70 and first.max() == 512 and first.min() > 0
    assert (WORKLOADS["worst"].lengths(3) == 128).all()


def test_half_of_the_groups_are_without_signal():
    rewards = np.array(WORKLOADS["typical"].rewards()).reshape(2, 16)
    assert [len(set(row)) for row in rewards.tolist()] == [1, 2]


def test_the_sizes_are_what_their_names_say():
    for name, count in (("0.2M", 0.2e6), ("5M", 5e6), ("50M", 50e6)):
        shape = WORKLOADS["worst"].shape(name)
        matrices = roofline.layers(shape) + shape.hidden * shape.vocab
        assert (
            0.9 * count < matrices - (name == "0.2M") * shape.hidden * shape.vocab < 1.1 * count
        ), name
    assert set(SIZES) == {"0.2M", "5M", "50M"}


def test_a_question_is_as_many_tokens_as_the_work_says(model):
    chat = Chat.load(model)
    for question in TINY.questions(2):
        assert (
            len(chat.prompt(Problem("q", ({"role": "user", "content": question},))).tokens)
            == TINY.prompt
        )


def test_each_side_draws_the_lengths_of_the_work(model):
    """Both assert it themselves, of every sample."""
    assert len(whet_side.sample(TINY, model, 2)) == 2
    pytest.importorskip("transformers")
    assert len(peers.sample(TINY, model, 2)) == 2


def test_the_limit_is_the_work_s_flops_over_the_machine_s():
    slow = {"flops": 1e9, "bytes": 1e30}
    worst = WORKLOADS["worst"]
    shape = worst.shape("5M")
    tokens = 4 * 16 + 4 * 8 * 127  # a prompt once, and no pass for an answer's last token
    low = 2 * roofline.layers(shape) * tokens / 1e9
    assert low < roofline.sampling(worst, "5M", 0, slow) < 1.3 * low
    trained = 4 * 16 + 4 * 8 * 128
    assert (
        3 * 2 * roofline.layers(shape) * trained / 1e9
        < roofline.update(worst, "5M", 0, slow)
        < 1.3 * 6 * 5e6 * trained / 1e9
    )
    memory = {"flops": 1e30, "bytes": 1e9}
    weights = 4 * (roofline.layers(shape) + shape.hidden * shape.vocab) * 127 / 1e9
    assert weights < roofline.sampling(worst, "5M", 0, memory) < 3 * weights


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_both_sides_compute_the_same_gradient(model, tmp_path, beta):
    """TRL's own step, from its own samples; whet's from the same samples, with the silent groups
    left out and prompts shared.
    """
    pytest.importorskip("trl")
    work = replace(TINY, beta=beta)
    trainer = peers.trainer(work, model, 1, tmp_path)
    peers.timed_generate(trainer.model, work, trainer.processing_class.eos_token_id)
    if beta:
        with torch.no_grad():
            for p in trainer.ref_model.parameters():
                p.add_(
                    torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.02
                )
    seen = {}
    plain = trainer.compute_loss

    def spy(net, inputs, **more):
        seen.update(inputs)
        return plain(net, inputs, **more)

    trainer.compute_loss = spy
    theirs = {}
    trainer.create_optimizer()
    before = trainer.optimizer.step

    def step(*args, **kwargs):
        theirs.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
        return before(*args, **kwargs)

    trainer.optimizer.step = step
    trainer.args.max_grad_norm = 0.0
    trainer.train()
    ours = whets(work, model, seen, trainer.ref_model if beta else None)
    assert set(ours) <= set(theirs)
    assert max(float(g.abs().max()) for g in ours.values()) > 1e-4
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).abs().max() < 1e-6 + 1e-4 * theirs[name].abs().max(), name


def whets(work, directory, seen, reference):
    """Gradients under Hugging Face's names."""
    policy, chat = pretrained.load(directory), Chat.load(directory)
    stage = whet_side.stage(work, 1)
    stage = stage.model_copy(
        update={"optimizer": stage.optimizer.model_copy(update={"max_grad_norm": 1e9})}
    )
    context = whet_side.context(
        work, chat, whet_side.Clock(directory.parent / f"log{work.beta}"), policy
    )
    trainer = rl.prepared(policy, stage, context)
    if reference is not None:
        reference.save_pretrained(directory.parent / "reference")
        trainer.reference = pretrained.load(directory.parent / "reference")
    groups = []
    rows = zip(
        *(seen[k].tolist() for k in ("prompt_ids", "completion_ids", "completion_mask")),
        strict=True,
    )
    samples = []
    for prompt, completion, mask in rows:
        tokens = np.array([*prompt, *completion[: sum(mask)]])
        chosen = np.arange(len(tokens)) >= len(prompt)
        samples.append(Sample(tokens, chosen, np.zeros(len(tokens), np.float32), "", "stop"))
    order = order_of(seen["advantages"].tolist(), samples)
    for i in range(work.prompts):
        some = [samples[j] for j in order[i]]
        rewards = [1.0] * 4 if all(seen["advantages"][j] == 0 for j in order[i]) else None
        scores = [
            Score(rewards[k] if rewards else float(seen["advantages"][j] > 0))
            for k, j in enumerate(order[i])
        ]
        groups.append(
            Group(
                Prompt(Problem(str(i), ({"role": "user", "content": ""},)), ()),
                tuple(some),
                tuple(scores),
            )
        )
    for group in groups:  # on policy: what sampled them is the policy as it is
        batch = pack(group.samples, [0.0] * len(group.samples), [1.0] * len(group.samples))
        logp = policy_logprobs(policy, batch, trainer.sampling)[0].detach().numpy()
        at = 0
        for sample in group.samples:
            sample.logp[sample.mask] = logp[at : at + sample.length]
            at += sample.length
    trainer.learner.forget = lambda: None
    trainer.update(groups)
    gradients = {}
    for name, stacked in parts(policy.config).items():
        gradient = dict(policy.named_parameters())[name].grad
        pieces = gradient.split([p.shape[0] for p in stacked])
        gradients |= {p.name: g for p, g in zip(stacked, pieces, strict=True)}
    return gradients


def order_of(advantages, samples):
    """Samples of one prompt together: TRL shuffles them."""
    prompts = {}
    for i, sample in enumerate(samples):
        prompts.setdefault(tuple(sample.tokens[: TINY.prompt].tolist()), []).append(i)
    assert sorted(len(g) for g in prompts.values()) == [4] * 4
    return list(prompts.values())


def test_what_there_is_not_is_refused_in_one_line(capsys):
    for arguments in (["bench", "wurst"], ["bench", "--size", "7B"], ["bench", "--rounds", "0"]):
        assert main(arguments) == 2 or main(arguments) == 1
        assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(WhetError, match="did you mean 'worst'"):
        workload("wurst")


def test_the_command_prints_every_side_and_its_json_the_ratios(monkeypatch, capsys):
    tiny = replace(TINY, name="worst")
    monkeypatch.setitem(WORKLOADS, "worst", tiny)
    monkeypatch.setattr(compare, "missing", lambda: ["trl", "generate"])
    assert (
        main(
            [
                "bench",
                "worst",
                "--size",
                "0.2M",
                "--rounds",
                "1",
                "--steps",
                "2",
                "--json",
                "--threads",
                "1",
            ]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["ratios"] == {"worst": None} and report["missing"] == ["trl", "generate"]
    summary = report["works"]["worst"]
    assert summary["tokens"] == int(tiny.lengths(0).sum())
    assert (
        summary["sides"]["whet"]["step"]["median"] > 0
        and summary["sides"]["whet"]["memory"]["median"] > 0
    )
    assert 0 < summary["sampling_share"] < 1 and 0 < summary["update_share"] < 1
    assert report["machine"]["threads"] == 1 and report["versions"]["torch"] == torch.__version__
    assert (
        main(
            ["bench", "worst", "--size", "0.2M", "--rounds", "1", "--steps", "1", "--threads", "1"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "limit" in out and "not installed, so not measured: trl, transformers" in out


def test_ratios_are_the_peer_s_seconds_over_whet_s():
    def report(step, memory):
        each = {"step": step, "sample": step / 2, "update": step / 2}
        return [{"steps": [dict.fromkeys(each, 100.0), each], "memory": memory}] * 2

    reports = {
        "whet": report(2.0, 100.0),
        "trl": report(7.0, 400.0),
        "whet-sample": report(1.0, 1.0),
        "generate": report(3.0, 1.0),
    }
    summary = compare.summarised(WORKLOADS["worst"], "5M", reports, {"flops": 1e11, "bytes": 1e10})
    assert (summary["ratio"], summary["memory_ratio"], summary["sampling_ratio"]) == (
        3.5,
        0.25,
        3.0,
    )
    assert asdict(WORKLOADS["worst"])["vocab"] == 1024


def test_what_a_side_says_after_its_figures_is_left_aside(tmp_path):
    talks = tmp_path / "python"
    talks.write_text(
        "#!/bin/sh\necho INFO starting\necho '{\"steps\": []}'\necho INFO shutting down\n"
    )
    talks.chmod(0o755)
    plan = compare.Plan([WORKLOADS["worst"]], vllm=str(talks))
    assert compare.side_report("vllm", WORKLOADS["worst"], tmp_path, plan) == {"steps": []}
