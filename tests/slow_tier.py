"""What the default suite leaves to the slow tier, so that it stays within its eight minutes on two cores.

Most of these repeat one check over many rows: of such a test the default suite runs the rows named here, those that differ
most, and the slow tier (FLUX_LORA_SLOW=1) runs all. A test without rows here runs there alone; what it shows is shown by a
shorter one, too. Times were taken with `pytest --durations`; a test that is made faster comes back.
"""

import pytest

KEPT: dict[str, tuple[str, ...]] = {
    "test_options.py::test_an_option_changes_what_is_trained": (
        "flow.flow_schedule_shift",
        "flow.flux_guidance_value",
        "flow.loss_type",
        "optimizer.learning_rate",
        "optimizer.lr_warmup_steps",
        "optimizer.max_grad_norm",
        "lora.lora_alpha",
        "lora.lora_blocks",
        "lora.lokr_factor",
        "routes.selection_ratio",
        "training.seed",
        "training.gradient_accumulation_steps",
        "datasets.repeats",
        "base.mixed_precision",
    ),
    "test_adapter_runs.py::test_training_lowers_the_loss_on_what_it_sees": ("lokr",),
    "test_adapter_runs.py::test_a_resumed_run_ends_with_the_same_bytes": ("lokr", "pissa with dropout"),
    "test_adapter_runs.py::test_checkpointing_changes_memory_not_numbers": ("lora with dropout",),
    "test_optim.py::test_it_trains": ("adamw", "bnb-adamw8bit", "prodigy", "adamw_schedulefree"),
    "test_optim.py::test_a_resumed_run_ends_with_the_same_bytes": ("adamw", "bnb-adamw8bit", "prodigy", "adamw_schedulefree"),
    "test_quantize.py::test_a_lora_learns_resumes_exactly_and_exports_the_same_keys": ("nf4-bnb",),
    "test_eight_bit.py::test_a_lora_learns_on_them_as_on_the_whole_base_and_resumes_exactly": ("int8-torchao",),
    "test_plan.py::test_three_small_rehearsals_tell_the_peak_of_all_blocks": ("False",),
    "test_plan.py::test_what_is_small_is_not_rehearsed_and_what_cannot_fit_is_refused": (),
    "test_plan.py::test_a_smaller_rank_is_planned_with_its_own_adapter": (),
    "test_presets.py::test_a_preset_is_planned_to_fit_its_card_at_its_size": ("10 GB",),
    "test_gpu.py::test_without_a_card_the_benchmark_says_that_its_rows_fill_no_table": (),
    "test_compare.py::test_the_loss_of_a_checkpoint_is_the_same_in_another_process_and_with_other_threads": (),
    "test_memory.py::test_offload_during_startup_never_has_both_text_encoders": ("True",),
    "test_offload.py::test_waiting_blocks_change_no_value_and_no_gradient": (
        "no_change-True",
        "nf4-bnb-False",
        "int8-torchao-True",
    ),
    "test_kill.py::test_a_killed_run_ends_as_if_nothing_had_happened": (),  # test_faults.py kills in the default suite
    "test_init_lora.py::test_a_run_goes_on_from_the_file_of_another": ("lokr-spec1",),
    "test_modulation.py::test_a_stopped_run_goes_on_to_the_same_bytes": (),
    "test_run.py::test_a_resumed_run_ends_with_the_same_bytes": ("no",),
    "test_run.py::test_stop_through_the_control_file_and_resume_from_the_command_line": (),
    "test_tread.py::test_compiled_blocks_take_the_routes_and_train_without_a_graph_break": (),
    "test_files.py::test_the_trained_base_loads_from_files_with_its_lora": (),
    "test_workflows.py::test_a_shipped_workflow_runs_to_its_pictures": (),
    "test_plan_node.py::test_the_plan_says_and_draws_what_each_phase_needs": (),
    "test_lora_tool_nodes.py::test_a_trained_lora_is_converted_and_merged_in_the_graph": (),
    "test_input.py::test_tread_routes_reach_the_training": (),
    "test_export.py::test_a_simpletuner_configuration_trains_in_the_graph_and_its_export_is_the_same": (),
    "test_tread_elsewhere.py::test_two_processes_train_with_routes_as_one_with_both_samples_does": (),
}


def name_of(item: pytest.Item) -> str:
    """As in the table: file and test, without the row."""
    return f"{item.path.name}::{item.name.split('[')[0]}"


def row_of(item: pytest.Item) -> str:
    """What stands in brackets; '' where the test has no rows."""
    return item.name.partition("[")[2].removesuffix("]")


def is_left_out(item: pytest.Item) -> bool:
    """Whether the default suite does without it."""
    return name_of(item) in KEPT and row_of(item) not in KEPT[name_of(item)]
