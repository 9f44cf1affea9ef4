"""What the default suite leaves to the slow tier, so that it stays within its eight minutes on two cores.

Most of these repeat one check over many rows: of such a test the default suite runs the rows named here, those that differ
most, and the slow tier (FLUX_LORA_SLOW=1) runs all. A test without rows here runs there alone; what it shows is shown by a
shorter one, too. Times were taken with `pytest --durations`; a test that is made faster comes back.
"""

import pytest

KEPT: dict[str, tuple[str, ...]] = {
    "test_options.py::test_an_option_changes_what_is_trained": (
        "flow.flux_guidance_value",
        "optimizer.max_grad_norm",
        "lora.lora_alpha",
        "routes.selection_ratio",
        "training.seed",
        "datasets.repeats",
        "base.mixed_precision",
    ),
    "test_adapter.py::test_a_new_adapter_changes_nothing_and_trains_only_itself_in_float32": (
        "float32-lora",
        "bfloat16-gaussian",
        "float32-pissa",
        "bfloat16-olora",
        "float32-lokr",
        "bfloat16-lokr of low rank",
        "float32-loha",
    ),
    **dict.fromkeys(
        (
            "test_adapter.py::test_the_start_is_a_function_of_the_seed_and_leaves_the_global_state_alone",
            "test_adapter.py::test_the_file_on_the_untouched_base_is_the_trained_model",
            "test_adapter.py::test_the_file_is_complete_and_verified",
        ),
        ("lora", "pissa", "lokr of low rank", "loha"),
    ),
    "test_adapter.py::test_inspect_tells_kind_rank_alpha_targets_norms_and_metadata": (
        "lora-ranks0-alphas0",
        "lokr of low rank-ranks3-alphas3",
    ),
    "test_adapter_runs.py::test_training_lowers_the_loss_on_what_it_sees": ("lokr",),
    "test_adapter_runs.py::test_a_resumed_run_ends_with_the_same_bytes": ("pissa with dropout",),
    "test_adapter_runs.py::test_checkpointing_changes_memory_not_numbers": ("lora with dropout",),
    "test_optim.py::test_it_trains": ("bnb-adamw8bit", "prodigy", "adamw_schedulefree"),
    "test_optim.py::test_the_lora_has_the_average_and_the_checkpoint_what_was_trained": ("adamw_schedulefree", "prodigy"),
    "test_optim.py::test_a_resumed_run_ends_with_the_same_bytes": ("bnb-adamw8bit", "prodigy"),
    "test_quantize.py::test_a_lora_learns_resumes_exactly_and_exports_the_same_keys": ("nf4-bnb",),
    "test_quantize.py::test_captions_encode_nearly_alike_with_quantised_text_encoders": ("nf4-bnb",),
    "test_eight_bit.py::test_a_lora_learns_on_them_as_on_the_whole_base_and_resumes_exactly": ("int8-torchao",),
    "test_plan.py::test_three_small_rehearsals_tell_the_peak_of_all_blocks": ("False",),
    "test_plan.py::test_a_whole_flux_is_planned_from_its_header_alone": ("no_change-23.5-26.5", "nf4-bnb-7.2-9.5"),
    "test_plan.py::test_a_smaller_rank_is_planned_with_its_own_adapter": (),
    "test_presets.py::test_a_preset_is_planned_to_fit_its_card_at_its_size": ("12 GB",),
    "test_presets.py::test_a_smaller_card_than_the_preset_s_is_too_small": ("12 GB-10",),
    "test_gpu.py::test_without_a_card_the_benchmark_says_that_its_rows_fill_no_table": (),
    "test_compare.py::test_the_loss_of_a_checkpoint_is_the_same_in_another_process_and_with_other_threads": (),
    "test_memory.py::test_offload_during_startup_never_has_both_text_encoders": ("True",),
    "test_offload.py::test_waiting_blocks_change_no_value_and_no_gradient": (
        "no_change-True",
        "nf4-bnb-False",
    ),
    "test_kill.py::test_a_killed_run_ends_as_if_nothing_had_happened": (),  # test_faults.py kills in the default suite
    "test_model_files.py::test_gguf_is_read_as_what_it_stands_for": ("BF16", "Q8_0", "Q5_1"),
    "test_dialects.py::test_lokr_and_loha_mean_the_same_change_whole_and_taken_apart": (
        "loha-kohya",
        "lokr-lycoris",
        "lokr 1-kohya",
        "lokr 2-lycoris",
        "lokr 12-bfl",
    ),
    "test_lora_tools.py::test_converted_files_do_the_same_and_keep_their_kind": (
        "lora-diffusers",
        "lora-kohya",
        "loha-kohya",
        "fused-diffusion_model",
    ),
    "test_masks.py::test_alpha_is_the_mask_and_goes_where_its_picture_goes": ("1", "4", "6"),
    "test_references.py::test_the_plan_counts_the_work_on_references": (),
    "test_init_lora.py::test_a_run_goes_on_from_the_file_of_another": ("lokr-spec1",),
    "test_modulation.py::test_a_stopped_run_goes_on_to_the_same_bytes": (),
    "test_run.py::test_a_resumed_run_ends_with_the_same_bytes": ("no",),
    "test_run.py::test_stop_through_the_control_file_and_resume_from_the_command_line": (),
    "test_simpletuner_examples.py::test_the_examples_train_on_the_size_of_pico": (
        "prompt library with auto shift with optimi-stableadamw",
        "loftq on nf4",
    ),
    "test_publishing.py::test_a_run_that_wishes_it_is_published_at_its_end": (),  # the others publish by the command
    # test_init_lora.py has an assistant on pico
    "test_flavours.py::test_schnell_trains_all_noise_levels_with_an_assistant_that_its_lora_does_not_hold": (),
    "test_flavours.py::test_dev_and_krea_train_as_the_job_says_and_are_pictured_with_their_guidance": ("dev",),
    "test_tread.py::test_compiled_blocks_take_the_routes_and_train_without_a_graph_break": (),
    "test_files.py::test_the_trained_base_loads_from_files_with_its_lora": (),
    "test_workflows.py::test_a_shipped_workflow_runs_to_its_pictures": (),
    "test_plan_node.py::test_a_run_that_cannot_fit_is_refused_with_what_would": (),
    "test_newest.py::test_a_finished_run_is_found_and_drawn_from_its_events": ("nodes 2.0",),
    "test_plan_node.py::test_the_plan_says_and_draws_what_each_phase_needs": (),
    "test_lora_tool_nodes.py::test_a_trained_lora_is_converted_and_merged_in_the_graph": (),
    "test_input.py::test_tread_routes_reach_the_training": (),
    "test_export.py::test_a_simpletuner_configuration_trains_in_the_graph_and_its_export_is_the_same": (),
    **dict.fromkeys(
        (
            "test_tread_elsewhere.py::test_on_a_quantised_base_a_route_that_drops_nothing_changes_nothing",
            "test_tread_elsewhere.py::test_on_a_quantised_base_a_route_is_a_forward_pass_without_the_tokens",
            "test_tread_elsewhere.py::test_on_a_quantised_base_checkpointed_equals_unchecked",
            "test_tread_elsewhere.py::test_on_a_quantised_base_the_loss_falls_with_routes",
        ),
        ("nf4-bnb-lokr", "int8-quanto-lora"),
    ),
    "test_processes.py::test_who_waits_waits_for_the_last": (),  # as do the two processes with an empty cache
    "test_standby.py::test_it_is_the_process_of_the_run_and_stops_with_its_input": (),  # test_waiting.py has it in ComfyUI
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
