"""Which layers are adapted, at which rank and size; and what is said of a wrong choice."""

import re

import pytest
import torch

from trainer_core.adapter.factors import factorize, lokr_shapes
from trainer_core.adapter.plan import AdapterPlan, given_module, plan_adapter
from trainer_core.adapter.targets import parse_blocks
from trainer_core.errors import JobError
from trainer_core.flux.load import FluxShape, empty_transformer
from trainer_core.specs.adapter import LoraSpec

FULL = empty_transformer(
    FluxShape(num_double=19, num_single=38, width=3072, in_channels=64, t5_width=4096, clip_width=768, guidance=True)
)
BLOCKS = {"double": 19, "single": 38}


def plan(**fields) -> AdapterPlan:
    return plan_adapter(FULL, LoraSpec(**fields))


@pytest.mark.parametrize(
    ("target", "modules", "parameters", "millions"),
    [
        ("mmdit", 190, 18_677_760, "18.7"),
        ("all", 266, 26_148_864, "26.1"),
        ("context", 76, 7_471_104, "7.5"),
        ("context+ffs", 114, 16_809_984, "16.8"),
        ("all+ffs", 419, 65_422_336, "65.4"),
        ("ai-toolkit", 495, 85_967_872, "86.0"),
        ("tiny", 2, 589_824, "0.6"),
        ("nano", 1, 294_912, "0.3"),
    ],
)
def test_each_target_has_the_layers_and_size_of_the_fact_sheet(target, modules, parameters, millions):
    """At rank 16. The sheet rounds 26.15 up to 26.2 for 'all'."""
    made = plan(flux_lora_target=target)
    assert (len(made.modules), made.num_parameters) == (modules, parameters)
    assert f"{parameters / 1e6:.1f}" == millions


def test_custom_targets_are_full_names_or_endings():
    made = plan(
        flux_lora_target="custom", peft_lora_target_modules=("attn.to_q", "transformer_blocks.3.ff.net.2", "x_embedder")
    )
    assert len(made.modules) == 19 + 38 + 1 + 1
    assert {"x_embedder", "transformer_blocks.3.ff.net.2", "single_transformer_blocks.37.attn.to_q"} <= set(made.names)


def test_a_custom_target_that_is_no_layer_is_named_with_what_it_may_be():
    with pytest.raises(JobError) as error:
        plan(flux_lora_target="custom", peft_lora_target_modules=("attn.to_qq", "to_k", "norm_q", "zzz"))
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "'attn.to_qq'" in lines[0] and "did you mean attn.to_q" in lines[0]
    assert "'norm_q'" in lines[1] and "'zzz'" in lines[2] and "proj_out" in lines[2]


def test_blocks_are_read_as_written():
    assert parse_blocks("double 0-2, single 7, 20", BLOCKS, "x") == {
        *(("double", index) for index in range(3)),
        ("single", 7),
        ("single", 20),
    }
    assert parse_blocks(" Single 3 - 4 ", BLOCKS, "x") == {("single", 3), ("single", 4)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7", "'7' in '7' is not a range of blocks"),
        ("double 5-2", "is not a range"),
        ("double 0-5,", "'' in 'double 0-5,' is not a range"),
        ("triple 3", "write for instance 'double 0-5, single 7' (this base has double 0-18, single 0-37)"),
        ("double -1", "is not a range"),
        ("single 30-38", "there is no block single 38 as in 'single 30-38'; this base has double 0-18, single 0-37"),
    ],
)
def test_blocks_that_cannot_be_read_or_are_not_there_are_told(text, message):
    with pytest.raises(JobError, match=re.escape(message)):
        plan(lora_blocks=text)


def test_lora_blocks_leaves_out_all_other_layers():
    made = plan(flux_lora_target="all+ffs", lora_blocks="double 0-1, single 5")
    assert len(made.modules) == 2 * 12 + 5
    assert "proj_out" not in made.names
    with pytest.raises(JobError, match="none of the layers of flux_lora_target is in these blocks"):
        plan(flux_lora_target="context", lora_blocks="single 5")


def test_a_later_line_of_rank_pattern_wins_and_alpha_follows_the_rank():
    made = plan(flux_lora_target="all+ffs", rank_pattern=("single 0-9: 32", "single 4, double 2: 8"))
    ranks = {module.name: module.rank for module in made.modules}
    assert ranks["single_transformer_blocks.3.proj_mlp"] == 32
    assert ranks["single_transformer_blocks.4.proj_mlp"] == 8
    assert ranks["transformer_blocks.2.attn.to_q"] == 8
    assert ranks["single_transformer_blocks.10.proj_mlp"] == ranks["proj_out"] == 16
    assert {module.strength for module in made.modules} == {1.0}
    assert made.modules[0].shapes == {"down": (16, 3072), "up": (3072, 16)}


def test_a_set_alpha_is_that_of_all_layers():
    made = plan(lora_alpha=8.0, rank_pattern=("single 0: 32",))
    assert {module.alpha for module in made.modules} == {8.0}
    assert {module.strength for module in made.modules} == {0.5, 0.25}
    assert made.summary()["ranks"] == {"16": 263, "32": 3}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("single 0-9 32", "is not 'blocks: rank'"),
        ("single 0-9: 0", "with a rank of 1 to 1024"),
        ("single 0-99: 4", "there is no block single 99"),
        ("double 3: 4", "'double 3: 4' matches no adapted layer"),
    ],
)
def test_a_wrong_line_of_rank_pattern_is_named(line, message):
    with pytest.raises(JobError, match=f"lora.rank_pattern.1: .*{re.escape(message)}"):
        plan(flux_lora_target="all", lora_blocks="single 0-20", rank_pattern=("single 1: 2", line))


def test_loftq_needs_a_quantised_base():
    with pytest.raises(JobError, match=r"'loftq'.*not quantised; quantise it, or choose"):
        plan(lora_init_type="loftq")
    assert plan_adapter(FULL, LoraSpec(lora_init_type="loftq"), quantised=True).exported[0].rank == 32


@pytest.mark.parametrize(
    ("size", "factor", "small"),
    [(3072, 16, 16), (3072, 10, 8), (3072, -1, 48), (3072, 1024, 48), (64, 16, 8), (127, 16, 1), (12288, 8, 8), (9, 1, 1)],
)
def test_the_small_factor_is_the_largest_divisor_that_fits(size, factor, small):
    assert factorize(size, factor) == (small, size // small)


def test_a_lokr_has_a_factor_for_attention_and_one_for_all_else():
    made = plan(lora_type="lokr", flux_lora_target="ai-toolkit")
    shapes = {module.name: module.shapes for module in made.modules}
    assert shapes["transformer_blocks.0.attn.to_q"] == {"w1": (16, 16), "w2": (192, 192)}
    assert shapes["single_transformer_blocks.0.attn.to_v"] == {"w1": (16, 16), "w2": (192, 192)}
    assert shapes["transformer_blocks.0.ff.net.0.proj"] == {"w1": (8, 8), "w2": (1536, 384)}
    assert shapes["transformer_blocks.0.norm1.linear"] == {"w1": (8, 8), "w2": (2304, 384)}
    assert shapes["single_transformer_blocks.0.proj_out"] == {"w1": (8, 8), "w2": (384, 1920)}
    assert {(module.rank, module.strength) for module in made.modules} == {(0, 1.0)}


def test_a_large_factor_is_split_where_that_is_smaller():
    made = plan(lora_type="lokr", lokr_full_matrix=False, lora_rank=16, lora_alpha=8.0)
    assert made.modules[0].shapes == {"w1": (16, 16), "w2_a": (192, 16), "w2_b": (16, 192)}
    assert made.modules[0].strength == 0.5
    assert lokr_shapes(3072, 3072, 16, 96) == {"w1": (16, 16), "w2": (192, 192)}


def test_a_rank_pattern_that_a_whole_lokr_cannot_use_is_told(caplog):
    plan(lora_type="lokr", rank_pattern=("single 0: 4",))
    assert "lora.rank_pattern has no effect" in caplog.text


def test_a_loha_is_two_loras():
    made = plan(lora_type="loha", flux_lora_target="nano")
    assert made.modules[0].shapes == {"w1_a": (3072, 16), "w1_b": (16, 15360), "w2_a": (3072, 16), "w2_b": (16, 15360)}
    assert made.num_parameters == 2 * 294_912


def test_what_a_file_gives_must_fit_the_kind_and_the_layer():
    def given(**shapes):
        return given_module("proj_out", None, {part: torch.empty(shape) for part, shape in shapes.items()})

    def ranks(kind: str, **shapes):
        made = plan_adapter(FULL, LoraSpec(lora_type=kind), {"proj_out": given(**shapes)})
        return {module.name: (module.rank, module.strength) for module in made.modules}["proj_out"]

    assert ranks("lora", down=(3, 3072), up=(64, 3)) == (3, 1.0)
    assert ranks("lokr", w1_a=(4, 2), w1_b=(2, 4), w2=(16, 768)) == (2, 1.0)
    assert ranks("lokr", w1=(4, 4), w2=(16, 768)) == (0, 1.0)
    assert ranks("loha", w1_a=(64, 2), w1_b=(2, 3072), w2_a=(64, 2), w2_b=(2, 3072)) == (2, 1.0)
    with pytest.raises(JobError, match=r"for proj_out \(w1 .* is not a whole lora; set lora_type to the file's kind"):
        ranks("lora", w1=(4, 4), w2=(16, 768))
    with pytest.raises(JobError, match="is not a whole lora"):
        ranks("lora", down=(3, 3072), up=(64, 4))
    with pytest.raises(JobError, match=r"128 x 3072 in proj_out, this base's has 64 x 3072"):
        ranks("lora", down=(3, 3072), up=(128, 3))
