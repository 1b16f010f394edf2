"""The peers' sides: TRL's GRPOTrainer for the whole step, transformers' generate for sampling.

The libraries are development extras; they are imported in the functions.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whet.bench.workload import Workload


def ending(work: Workload, eos: int) -> Any:
    """A logits processor that ends each row at the workload's length and nowhere else.

    `began` counts the calls of generate.
    """
    from transformers import LogitsProcessor

    class Ending(LogitsProcessor):
        began, prompt = -1, 0

        def begin(self, prompt: int) -> None:
            self.began, self.prompt = self.began + 1, prompt
            self.last = torch.from_numpy(work.lengths(self.began)) - 1

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            at = input_ids.shape[1] - self.prompt
            scores[:, eos] = -torch.inf
            over = (self.last == at).nonzero().squeeze(1).to(scores.device)
            if len(over):
                scores[over] = -torch.inf
                scores[over, eos] = 0.0
            return scores

    return Ending()


def timed_generate(model: Any, work: Workload, eos: int) -> list[float]:
    """Makes the model's generate end rows at the workload's lengths.

    Returns the list to which each call will append its seconds.
    """
    rule, seconds, original = ending(work, eos), list[float](), model.generate

    def generate(*arguments: Any, **options: Any) -> Any:
        rule.begin(options["input_ids"].shape[1])
        began = time.perf_counter()
        drawn = original(*arguments, **options, logits_processor=[rule])
        seconds.append(time.perf_counter() - began)
        return drawn

    model.generate = generate
    return seconds


def sample(work: Workload, directory: Path, steps: int) -> list[dict[str, float]]:
    """Seconds of transformers' generate for a step's answers, all in one batch."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    device, dtype = (
        ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    )
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    model.eval().to(device)
    seconds = timed_generate(model, work, tokenizer.eos_token_id)
    for step in range(steps):
        ids = (
            torch.tensor(tokenizer(work.questions(step))["input_ids"])
            .repeat_interleave(work.samples, 0)
            .to(device)
        )
        torch.manual_seed(step)
        with torch.inference_mode():
            drawn = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                max_new_tokens=work.cap,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        ended = (drawn[:, work.prompt :] == tokenizer.eos_token_id).int().argmax(1) + 1
        assert np.array_equal(ended.cpu().numpy(), work.lengths(step))
    return [{"sample": s} for s in seconds]


def trainer(work: Workload, directory: Path, steps: int, scratch: Path) -> Any:
    """TRL's GRPOTrainer for the workload: one batch an update, no checkpointing, no logging."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32

    def rewards(completions: Any, **_: Any) -> Any:
        return work.rewards()

    rows = [{"prompt": text} for step in range(steps) for text in work.questions(step)]
    settings = GRPOConfig(
        output_dir=str(scratch), use_cpu=not cuda, bf16=cuda,
        per_device_train_batch_size=work.prompts * work.samples // work.updates,
        steps_per_generation=work.updates, gradient_accumulation_steps=1,
        num_generations=work.samples, max_completion_length=work.cap,
        max_steps=steps * work.updates, loss_type="dr_grpo", scale_rewards="none", beta=work.beta,
        use_bias_correction_kl=False, epsilon=0.2, temperature=1.0, top_k=0, learning_rate=1e-6,
        lr_scheduler_type="constant", adam_beta2=0.95, max_grad_norm=1.0,
        gradient_checkpointing=False, shuffle_dataset=False, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory, dtype=dtype),
        reward_funcs=rewards,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def run(work: Workload, directory: Path, steps: int, scratch: Path) -> list[dict[str, float]]:
    """Seconds of each step of TRL's trainer: the whole, sampling (generate), the rest."""
    from transformers import TrainerCallback

    grpo = trainer(work, directory, steps, scratch)
    sampled = timed_generate(grpo.model, work, grpo.processing_class.eos_token_id)
    marks = list[float]()

    class Marks(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    grpo.add_callback(Marks())
    grpo.train()
    whole = np.diff(marks[:: work.updates]).tolist()
    return [{"step": w, "sample": s, "update": w - s} for w, s in zip(whole, sampled, strict=True)]
