"""The tools on adapter files: what each makes does in pico's forward pass what it was made from does."""

import json
import re
from pathlib import Path

import pytest
import torch
from foreign_adapters import DIALECTS, keys, lora, original_changes, random_layers
from forward_parity import SHAPE, deltas, difference, forward
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support import Command
from trainer_core.adapter.dialects import open_adapter, read_adapter
from trainer_core.adapter.low_rank import Wanted, of_matrix
from trainer_core.flux.files import PICO_FILES

PLACES = re.compile(r"(single_|double_)?(transformer_)?blocks\.0\.|x_embedder|img_in|norm_out|final_layer.adaLN")
SOURCES = {"lora": "diffusers", "loha": "lycoris", "lokr": "lycoris", "fused": "kohya", "other": "diffusers"}


def best(changes: dict[str, torch.Tensor], rank: int | None = None, energy: float = 1.0) -> dict[str, torch.Tensor]:
    """Each change cut to so many ranks, or to the fewest that hold this share of its squares."""
    cut = {}
    for layer, delta in changes.items():
        left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
        held = values.square().cumsum(0) / values.square().sum().clamp(min=1e-300)
        kept = rank or int((held < energy).sum()) + 1
        cut[layer] = (left[:, :kept] * values[:kept] @ right[:kept]).float()
    return cut


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An adapter of each kind, small enough to leave the model sensible; kohya's is fused."""
    folder = tmp_path_factory.mktemp("loras")
    for number, (name, dialect) in enumerate(SOURCES.items()):
        kind, original = {"fused": "lora", "other": "lora"}.get(name, name), DIALECTS[dialect].original
        layers = {layer: parts for layer, parts in random_layers(SHAPE, original, kind).items() if PLACES.match(layer)}
        for parts in layers.values():
            parts |= {part: 0.05 * (1 + number) * t for part, t in parts.items() if part in ("up", "hada_w1_a", "lokr_w1")}
        metadata = {"modelspec.title": name, "ss_network_dim": "4", "workflow": "{}"}
        save_file(keys(DIALECTS[dialect], layers), folder / f"{name}.safetensors", metadata)
    return folder


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def made(*arguments: object) -> dict:
    done = Command(*arguments)
    assert done.code == 0, done.stderr
    return done.report


@pytest.mark.parametrize("to", ["diffusers", "kohya", "diffusion_model"])
@pytest.mark.parametrize("name", ["lora", "loha", "fused"])
def test_converted_files_do_the_same_and_keep_their_kind(folder, tmp_path, name, to):
    path = tmp_path / "new.safetensors"
    report = made("convert", folder / f"{name}.safetensors", "--to", to, "--out", path)
    prefixes = {"diffusers": ("transformer.", "lycoris_"), "kohya": ("lora_unet_",), "diffusion_model": ("diffusion_model.",)}
    assert all(key.startswith(prefixes[to]) for key in load_file(path))
    assert report["kind"] == read_adapter(path, SHAPE).kind == {"fused": "lora"}.get(name, name)
    assert report["difference"] < 1e-6
    assert difference(forward(deltas(path)), forward(deltas(folder / f"{name}.safetensors"))) < 1e-5


def test_what_was_taken_apart_is_put_together_again_bit_for_bit(folder, tmp_path):
    source = folder / "fused.safetensors"
    made("convert", source, "--to", "diffusers", "--out", tmp_path / "a.safetensors")
    made("convert", tmp_path / "a.safetensors", "--to", "kohya", "--out", tmp_path / "b.safetensors")
    before, after = load_file(source), load_file(tmp_path / "b.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_an_adapter_of_one_of_several_fused_layers_leaves_the_others_alone(tmp_path):
    width, random = SHAPE.width, torch.Generator().manual_seed(0)
    name = "transformer_blocks.0.attn.to_k"
    source, path = tmp_path / "key.safetensors", tmp_path / "kohya.safetensors"
    save_file(keys(DIALECTS["diffusers"], {name: lora(width, width, random)}), source)
    made("convert", source, "--to", "kohya", "--out", path)
    found = {layer: delta for layer, delta in deltas(path).items() if delta.any()}
    assert list(found) == [name] and difference(found[name], deltas(source)[name]) < 1e-6


def test_a_lokr_that_one_matrix_cannot_hold_is_refused_with_what_to_do(folder, tmp_path):
    done = Command("convert", folder / "lokr.safetensors", "--to", "kohya", "--out", tmp_path / "new.safetensors")
    assert done.code == 2 and "attn.qkv is a lokr that cannot be said in this naming" in done.stderr
    assert "flux-lora resize" in done.stderr and not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "fused"])
def test_a_resize_to_enough_ranks_loses_nothing(folder, tmp_path, name):
    path = tmp_path / "new.safetensors"
    report = made("resize", folder / f"{name}.safetensors", "--rank", 10_000, "--out", path)
    assert report["kind"] == "lora" and report["difference"] < 1e-5
    assert difference(forward(deltas(path)), forward(deltas(folder / f"{name}.safetensors"))) < 1e-4


@pytest.mark.parametrize("name", ["lora", "loha", "lokr"])
def test_a_resize_keeps_the_best_that_so_few_ranks_can(folder, tmp_path, name):
    path = tmp_path / "new.safetensors"
    report, lost, energy = made("resize", folder / f"{name}.safetensors", "--rank", 3, "--out", path), 0.0, 0.0
    after = deltas(path)
    for layer, delta in deltas(folder / f"{name}.safetensors").items():
        squares = torch.linalg.svdvals(delta.double()).square()
        assert (delta - after[layer]).double().square().sum().item() == pytest.approx(squares[3:].sum().item(), rel=1e-3)
        lost, energy = lost + squares[3:].sum().item(), energy + squares.sum().item()
    assert report["ranks"] == [3] and report["difference"] == pytest.approx((lost / energy) ** 0.5, rel=1e-4)


def test_a_share_of_the_energy_takes_the_fewest_ranks_that_hold_it(folder, tmp_path):
    path = tmp_path / "new.safetensors"
    made("resize", folder / "lokr.safetensors", "--energy", 0.8, "--out", path)
    before, ranks = deltas(folder / "lokr.safetensors"), set()
    for layer, factors in read_adapter(path, SHAPE).modules.items():
        squares = torch.linalg.svdvals(before[layer].double()).square()
        held = squares.cumsum(0) / squares.sum()
        assert factors.rank == int((held < 0.8).sum()) + 1
        ranks.add(factors.rank)
    assert len(ranks) > 1
    cut = forward(best(before, energy=0.8))
    assert difference(forward(deltas(path)), cut) < 1e-4 < 1e-2 < difference(cut, forward(before))


def test_a_whole_matrix_is_cut_as_well_as_it_can_be():
    random = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, 301, dtype=torch.float32) ** -1.0
    left, right = (torch.linalg.qr(torch.randn(size, 300, generator=random))[0] for size in (500, 400))
    change = left * spectrum @ right.T
    best = spectrum[20:].square().sum().sqrt().item()
    found = of_matrix(change, Wanted(20))
    lora_ = found.as_lora()
    assert (change - lora_.delta()).norm().item() == pytest.approx(best, rel=1e-3)
    share = of_matrix(change, Wanted(1000, 0.9))
    held = spectrum.square().cumsum(0) / spectrum.square().sum()
    assert len(share.values) == int((held < 0.9).sum()) + 1 and share.kept >= 0.9


def test_an_exact_merge_is_the_weighted_sum(folder, tmp_path):
    path, names = tmp_path / "new.safetensors", ("lora", "loha", "fused")
    report = made("merge", *(folder / f"{name}.safetensors" for name in names), "--weights", "0.5, -1, 2", "--out", path)
    terms = [(weight, deltas(folder / f"{name}.safetensors")) for weight, name in zip((0.5, -1, 2), names, strict=True)]
    summed = {layer: sum(weight * found[layer] for weight, found in terms) for layer in terms[0][1]}
    assert report["ranks"] == [4 + 9 + 4] and report["difference"] < 1e-6
    assert difference(forward(deltas(path)), forward(summed)) < 1e-5
    assert metadata(path)["modelspec.merged_from"] == "lora, loha, fused"
    assert "flux-1-pico/lora" in metadata(path)["modelspec.architecture"] and "workflow" not in metadata(path)


def test_a_merge_to_a_rank_is_the_best_of_that_rank_of_any_kinds(folder, tmp_path):
    path, names = tmp_path / "new.safetensors", ("lora", "lokr")
    paths = [folder / f"{name}.safetensors" for name in names]
    done = Command("merge", *paths, "--out", path)
    assert done.code == 2 and "give --rank" in done.stderr
    report = made("merge", *paths, "--rank", 6, "--out", path)
    one, other, after = (deltas(each) for each in (*paths, path))
    layer = "transformer_blocks.0.ff.net.2"
    whole = one[layer] + other[layer]
    assert report["ranks"] == [6]
    assert (whole - after[layer]).norm().item() == pytest.approx(
        torch.linalg.svdvals(whole)[6:].square().sum().sqrt().item(), rel=1e-3
    )


def test_a_merge_to_a_rank_predicts_what_the_cut_sum_does(folder, tmp_path):
    """To the four ranks that stand out of this sum; of ranks that are nearly alike, any would be as good."""
    path, paths = tmp_path / "new.safetensors", [folder / f"{name}.safetensors" for name in ("lora", "lokr")]
    made("merge", *paths, "--rank", 4, "--out", path)
    one, other = map(deltas, paths)
    summed = {layer: one[layer] + other[layer] for layer in one}
    cut = forward(best(summed, rank=4))
    assert difference(forward(deltas(path)), cut) < 1e-3 < 1e-2 < difference(cut, forward(summed))


def test_a_lora_is_extracted_from_a_model_that_it_was_merged_into(folder, tmp_path):
    changes = deltas(folder / "lora.safetensors")
    tensors, added = load_file(PICO_FILES.transformer), original_changes(changes, SHAPE)
    prefix = next(key for key in tensors if key.endswith("img_in.weight")).removesuffix("img_in.weight")
    for name, delta in added.items():
        tensors[f"{prefix}{name}.weight"] = tensors[f"{prefix}{name}.weight"].float() + delta
    tensors[f"{prefix}img_in.bias"] = tensors[f"{prefix}img_in.bias"].float() + 1
    tuned, path = tmp_path / "tuned.safetensors", tmp_path / "new.safetensors"
    save_file(tensors, tuned)
    report = made("extract", tuned, PICO_FILES.transformer, "--rank", 4, "--precision", "fp32", "--out", path)
    assert report["difference"] < 1e-3 and report["ranks"] == [4] and report["layers"] == len(changes)
    assert "1 biases and norms differ, too, such as x_embedder.bias" in report["notes"][0]
    assert difference(forward(deltas(path)), forward(changes)) < 1e-3
    done = Command("extract", tuned, tuned, "--rank", 4, "--out", tmp_path / "none.safetensors")
    assert done.code == 2 and "nothing to extract" in done.stderr


def test_the_header_keeps_what_holds_and_says_what_was_done(folder, tmp_path):
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    made("resize", folder / "lora.safetensors", "--rank", 2, "--out", once)
    made("convert", once, "--to", "kohya", "--precision", "bf16", "--out", twice)
    header = metadata(twice)
    assert header["modelspec.title"] == "lora" and header["workflow"] == "{}" and "ss_network_dim" not in header
    assert header["modelspec.implementation"] == "https://github.com/black-forest-labs/flux"
    assert [(note["tool"], note["of"][0]["file"]) for note in json.loads(header["flux_lora.tools"])] == [
        ("resize", "lora.safetensors"),
        ("convert", "once.safetensors"),
    ]
    assert {str(tensor.dtype) for key, tensor in load_file(twice).items() if not key.endswith("alpha")} == {"torch.bfloat16"}
    again = tmp_path / "again.safetensors"
    made("convert", once, "--to", "kohya", "--precision", "bf16", "--out", again)
    assert again.read_bytes() == twice.read_bytes()


def test_nothing_is_written_over_and_wrong_wishes_are_refused(folder, tmp_path):
    source, taken = folder / "lora.safetensors", tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    for words, said in (
        (("convert", source, "--to", "kohya", "--out", taken), "nothing is written over"),
        (("convert", source, "--to", "kohya", "--out", tmp_path / "a.pt"), "must end in .safetensors"),
        (("resize", source, "--out", tmp_path / "a.safetensors"), "say how small"),
        (("resize", source, "--rank", 0, "--out", tmp_path / "a.safetensors"), "give 1 or more"),
        (("resize", source, "--energy", 1.5, "--out", tmp_path / "a.safetensors"), "a share above 0 and up to 1"),
        (("merge", source, source, "--weights", "1", "--out", tmp_path / "a.safetensors"), "1 numbers for 2 LoRAs"),
        (("merge", source, "--weights", "0", "--out", tmp_path / "a.safetensors"), "every weight is 0"),
        (("convert", PICO_FILES.transformer, "--to", "kohya", "--out", tmp_path / "a.safetensors"), "is no adapter"),
    ):
        done = Command(*words)
        assert done.code == 2 and said in done.stderr, done.stderr
    assert taken.read_bytes() == b"mine" and not (tmp_path / "a.safetensors").exists()


def test_a_file_is_read_a_layer_at_a_time(folder):
    source = open_adapter(folder / "fused.safetensors", SHAPE)
    assert source.dtypes == {"F32"} and source.num_parameters == sum(
        tensor.numel() for key, tensor in load_file(source.path).items() if not key.endswith("alpha")
    )
    assert list(source.places) == list(read_adapter(source.path, SHAPE).modules)
