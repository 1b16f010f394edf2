"""In CI nothing may be skipped: a skip is a failure there, unless its reason is the shared data
that only our own machines have.
"""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

# What `make test-fast` leaves out (`-m "not slow"`): files, and tests of files, that take seconds.
SLOW = frozenset(
    [
        "test_bench",
        "test_chat::test_ids_equal_transformers",
        "test_check::test_what_is_wrong_is_named_and_the_exit_says_so",
        "test_cli::test_a_run_leaves_everything_behind",
        "test_cli::test_eval_prints_a_table_and_the_paired_test_in_words",
        "test_cli::test_eval_prints_json_with_the_settings_beside_the_score",
        "test_cli::test_several_seeds_make_one_table",
        "test_cli::test_the_same_seed_gives_the_same_figures",
        "test_code_escapes",
        "test_code_hacks::test_the_right_ones_are_paid",
        "test_code_reward::test_every_reference_of_human_eval_is_accepted_and_mutants_rejected",
        "test_code_reward::test_kinds_and_statuses",
        "test_code_runners",
        "test_code_sandbox",
        "test_cuda_graph::test_replayed_steps_sample_what_the_others_do",
        "test_custom_reward::test_a_fault_in_an_own_function_is_one_line_with_its_place",
        "test_determinism",
        "test_docs::test_what_brings_a_row_its_bias",
        "test_dry_run",
        "test_every_key",
        "test_faults",
        "test_forecast",
        "test_fuzz_cli",
        "test_fuzz_conversations",
        "test_fuzz_data",
        "test_gpu_bench",
        "test_gradient::test_gradient_equals_a_padded_loop_over_samples",
        "test_gradient::test_micro_batch_size_cannot_change_the_gradient",
        "test_gym",
        "test_invariances",
        "test_invariances_losses",
        "test_judge_endpoint::test_the_deadline_holds_whatever_the_endpoint_does",
        "test_kernels::test_nothing_is_left_beside_the_cache_unless_there_is_none",
        "test_kernels::test_without_a_compiler_everything_runs_in_torch",
        "test_lora_files",
        "test_math_gsm8k",
        "test_math_reward::test_tricky_pairs",
        "test_math_reward::test_what_cannot_be_judged_in_time_says_so_from_any_thread",
        "test_memory",
        "test_model::test_transformers_writes_and_whet_reads",
        "test_model::test_whet_writes_and_transformers_reads",
        "test_narrow",
        "test_oracle::test_off_policy_the_ratio_and_its_clip_are_a_bias_too",
        "test_oracle::test_rows_have_the_exact_gradient_of_what_they_claim",
        "test_pages",
        "test_pool::test_one_item_fails_alone",
        "test_pretrained::test_importing_the_hub_is_lean",
        "test_report_browser",
        "test_resume",
        "test_reward_robust",
        "test_stages::test_every_row_trains_and_stays_near_its_sampler",
        "test_taste",
        "test_trl",
    ]
)
SHARED = Path(__file__).resolve().parents[2] / "shared"


def excused(reason: str) -> bool:
    """Whether a skip may stand: outside CI all may; in CI those that need ../shared, where there is
    none.
    """
    return os.environ.get("CI", "").lower() != "true" or (
        "shared" in reason and not SHARED.exists()
    )


def strict(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns the report of an inexcusable skip into that of a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not excused(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    strict(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    strict(report)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow tests. An entry of SLOW that names no test is a mistake of ours."""
    for item in items:
        test = f"{item.path.stem}::{item.name.partition('[')[0]}"
        if item.path.stem in SLOW or test in SLOW:
            item.add_marker("slow")
