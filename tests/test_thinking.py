"""The thinking switch: how it is asked with and trained with."""

import dataclasses
import json

import pytest
from transformers import AutoTokenizer

from whet import config
from whet.chat import Chat
from whet.config.load import override_recipe, parse_recipe
from whet.errors import DataError, RecipeError
from whet.stages import rl, sft
from whet.tasks.chain import Chain
from whet.types import Problem, Prompt

from .helpers.tiny_world import rl_stage, sft_stage, world
from .test_chat import CHATML, saved, trained

ALPHABET = "0123456789+-*=;"
EMPTY = "<think>\n\n</think>\n\n"
OPEN = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
)
DEAF = "{% for m in messages %}{{ m.content }}{% endfor %}"


def sized(tmp_path, thinking, template=None):
    """The tiny world, asked with this setting of the switch, a template of its own in place of the
    built-in one.
    """
    model, context = world(tmp_path)
    chat = (
        context.chat
        if template is None
        else Chat.from_characters(ALPHABET + "\n", template=template)
    )
    return model, dataclasses.replace(context, ask=config.Ask(thinking=thinking), chat=chat)


def problem(thinking=None, question="3+5="):
    meta = {} if thinking is None else {"thinking": thinking}
    return Problem("p", ({"role": "user", "content": question},), "8", meta=meta)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    made = trained(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    where = saved(tmp_path_factory.mktemp("qwen"), made, CHATML, eos_token="<|im_end|>")
    return Chat.load(where), AutoTokenizer.from_pretrained(where)


# ---- asking


def test_a_share_is_decided_by_problem_and_seed(tmp_path):
    _, context = sized(tmp_path, 0.3)
    problems = Chain(operations=3).problems("train", 1000, 0)
    asked = {
        seed: [p.problem.meta["thinking"] for p in context.prompts(problems, seed)]
        for seed in (1, 2)
    }
    assert asked[1] == [p.problem.meta["thinking"] for p in context.prompts(problems, 1)]
    both = sum(a and b for a, b in zip(asked[1], asked[2], strict=True))
    assert (
        0.25 < sum(asked[1]) / 1000 < 0.35 and 0.05 < both / 1000 < 0.13
    )  # 0.3 x 0.3: the epochs are independent
    for prompt, thinking in zip(context.prompts(problems, 1), asked[1], strict=True):
        plain = context.chat.render(prompt.problem.messages)
        assert list(prompt.tokens) == (
            plain if thinking else [*plain, *context.chat.encode("<think></think>")]
        )
        assert prompt.begun == ("" if thinking else "<think></think>")


@pytest.mark.parametrize(
    ("setting", "expected"), [(True, True), (False, False), (1.0, True), (0.0, False), (None, None)]
)
def test_what_is_given_comes_before_the_problem_and_the_problem_before_the_recipe(
    tmp_path, setting, expected
):
    _, context = sized(tmp_path, setting)
    assert context.prompts([problem()])[0].problem.meta.get("thinking") is expected
    assert (
        context.prompts([problem(False), problem(True)])[0].begun
        and not context.prompts([problem(True)])[0].begun
    )
    assert context.prompts([problem(False)], thinking=True)[0].problem.meta["thinking"] is True


@pytest.mark.parametrize("value", ['"on"', "1.5", "-0.1", "[0.5]"])
def test_what_is_no_setting_is_refused_in_one_line(value):
    recipe = {"name": "t", "task": {"name": "chain"}, "stage": [{"name": "e", "kind": "evaluate"}]}
    override_recipe(recipe, f"ask.thinking={value}")
    with pytest.raises(
        RecipeError,
        match=r"^recipe: ask.thinking = .*; it must be true, false or a share from 0 to 1$",
    ) as caught:
        parse_recipe(recipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("thinking", [True, False])
def test_ids_equal_transformers_prompt_and_trained_response(qwen, tmp_path, thinking):
    chat, theirs = qwen
    _, context = sized(tmp_path, thinking)
    context = dataclasses.replace(context, chat=chat)
    asked = problem(question="3 + 5?")
    prompt = theirs.apply_chat_template(
        list(asked.messages), tokenize=True, add_generation_prompt=True, enable_thinking=thinking
    )["input_ids"]
    response = "<think>\n3 + 5 is 8\n</think>\n\nIt is 8."
    made = context.example(asked, response)
    said = response if thinking else "It is 8."
    assert list(context.prompts([asked])[0].tokens) == prompt == made.tokens[: len(prompt)].tolist()
    assert (
        made.tokens[made.mask].tolist() == [*theirs(said)["input_ids"], theirs.eos_token_id]
        and made.text == said
    )
    assert not made.mask[: len(prompt)].any()
    assert theirs.decode(prompt).endswith("assistant\n" if thinking else EMPTY)
    whole = theirs.apply_chat_template(
        [*asked.messages, {"role": "assistant", "content": f"{EMPTY}It is 8."}], tokenize=False
    )
    if (
        not thinking
    ):  # the template leaves empty thinking out of a finished turn, so the ids are compared as text
        assert theirs.decode(made.tokens).replace(EMPTY, "") == whole.rstrip("\n")


# ---- training


@pytest.mark.parametrize(
    ("template", "thinking", "response", "trained_on"),
    [
        (None, True, "<think>3+5=8</think>8", "<think>3+5=8</think>8"),
        (None, None, "<think>3+5=8</think>8", "<think>3+5=8</think>8"),
        (None, False, "<think>3+5=8</think>8", "8"),
        (None, False, "<think></think>8", "8"),
        (None, False, "8", "8"),
        (DEAF, False, "<think>3+5=8</think>\n\n8", "8"),
        (OPEN, True, "<think>\n3+5=8</think>8", "3+5=8</think>8"),
        (OPEN, True, "<think>3+5=8</think>8", "3+5=8</think>8"),
        (OPEN, None, "3+5=8</think>8", "3+5=8</think>8"),
    ],
)
def test_what_is_trained_follows_what_the_prompt_has_begun(
    tmp_path, template, thinking, response, trained_on
):
    _, context = sized(tmp_path, thinking, template)
    made = context.example(problem(), response)
    assert made.text == trained_on and made.tokens[made.mask].tolist() == context.chat.response(
        trained_on
    )


@pytest.mark.parametrize("response", ["<think>3+5=8", "<think>3+5=8</think>", ""])
def test_a_response_without_an_answer_cannot_be_trained_with_thinking_off(tmp_path, response):
    _, context = sized(tmp_path, False, DEAF)
    with pytest.raises(DataError, match="p: nothing follows the thinking"):
        context.example(problem(), response)


def test_sft_and_rl_see_both_and_a_group_one(tmp_path):
    model, context = sized(tmp_path, 0.5)
    seen: list[Prompt] = []

    class Spy:
        version = 0

        def generate(self, prompts, sampling, progress=None):
            seen.extend(prompts)
            return inner.generate(prompts, sampling)

    inner = context.engine(model, context.chat)
    sft.run(model, sft_stage(steps=2), context)
    rl.run(
        model, rl_stage(steps=2), dataclasses.replace(context, engine=lambda policy, chat: Spy())
    )
    assert {p.begun for p in seen} == {"", "<think></think>"} and len(seen) == 16
    logged = [
        json.loads(x) for x in (tmp_path / "samples/rl/000001.jsonl").read_text().splitlines()
    ]
    assert {"</think>" in "".join(g["prompt_tokens"]) for g in logged} == {True, False}


def test_an_epoch_asks_otherwise(tmp_path, monkeypatch):
    """The same document in several steps of sft, and the same problem in several of rl, is asked
    both ways.
    """
    model, context = sized(tmp_path, 0.5)
    trained_on: list[int] = []

    def packed(examples, *rest):
        trained_on.extend(e.length for e in examples)
        return real(examples, *rest)

    real = sft.pack
    monkeypatch.setattr(sft, "pack", packed)
    monkeypatch.setattr(
        sft, "documents", lambda stage, context: iter([(problem(), "<think></think>8")] * 8)
    )
    sft.run(model, sft_stage(steps=8, batch=1), context)
    assert set(trained_on) == {2, 4}  # the digit and the end of the turn, after thinking or with it
    monkeypatch.setattr(rl, "curriculum", lambda stage, context: Same())
    rl.run(model, rl_stage(steps=8, prompts=1), context)
    logged = [
        json.loads(path.read_text())["prompt_tokens"]
        for path in sorted((tmp_path / "samples/rl").iterdir())
    ]
    assert {"</think>" in tokens for tokens in logged} == {True, False}


class Same:
    def draw(self, n):
        return [problem()] * n

    def learn(self, groups):
        pass
