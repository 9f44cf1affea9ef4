"""DatasetBucket and its options in a real ComfyUI: what they hand on, what they show, and workflows from before them."""

from pathlib import Path
from typing import Any

import pytest
from comfy_client import Outcome, queue
from comfy_server import Server
from graphs import Prompt, change, find, only, picture
from PIL import Image

from support import make_pictures
from trainer_core.data.sheet import WIDTH
from trainer_core.specs.dataset import DatasetSpec

CROP = {
    "resolution_type": "pixel_area",
    "minimum_image_size": 0.0,
    "maximum_image_size": 0.0,
    "target_downsample_size": 0.0,
    "minimum_aspect_ratio": 0.0,
    "maximum_aspect_ratio": 0.0,
    "crop": False,
    "crop_style": "center",
    "crop_aspect": "square",
    "crop_aspect_buckets": "",
    "num_crops": 1,
    "background": "white",
    "reference_geometry": "strict",
    "small_buckets": "smaller_batch",
}
CAPTIONS = {
    "missing_caption": "error",
    "multiline_captions": False,
    "caption_table": "",
    "filename_column": "filename",
    "caption_column": "caption",
    "fallback_caption_column": "",
    "caption_prefix": "",
    "shuffle_tags": False,
    "tag_separator": ",",
    "keep_tags": 0,
    "wildcards_dir": "",
    "caption_variants": 1,
}
SAMPLING = {"probability": 1.0, "start_step": 0, "end_step": 0, "max_num_samples": 0, "disabled": False}


def graph(example: Prompt, others: Prompt | None = None, **inputs: Any) -> Prompt:
    """DatasetBucket on pico, its dataset, preview and report shown, and nodes to plug into it."""
    parts = only(example, "LoadFluxForTraining") | only(example, "DatasetBucket")
    bucket = find(parts, "DatasetBucket")
    parts = change(parts, "DatasetBucket", model=[find(parts, "LoadFluxForTraining"), 0], **inputs)
    return (
        parts
        | (others or {})
        | {
            "dataset": {"class_type": "PreviewAny", "inputs": {"source": [bucket, 0]}},
            "report": {"class_type": "PreviewAny", "inputs": {"source": [bucket, 2]}},
            "preview": {"class_type": "SaveImage", "inputs": {"images": [bucket, 1], "filename_prefix": "sheet"}},
        }
    )


def run(server: Server, prompt: Prompt) -> Outcome:
    outcome = queue(server.url, prompt)
    assert outcome.status == "success", outcome.error
    return outcome


def text_of(outcome: Outcome, node: str) -> str:
    return outcome.outputs[node]["text"][0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "pictures", 6)


def test_the_report_and_the_sheet_are_shown(server: Server, example: Prompt, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("broken")
    outcome = run(server, graph(example, path=str(folder), resolution="48, 64", repeats=1))
    report = text_of(outcome, "report")
    assert report.startswith("for pico\n\ndataset 'pictures' (trained on): 6 pictures in ")
    assert "24 to see: 6 pictures, 2 resolutions, 2 passes" in report and "steps per epoch: 24 at batch size 1" in report
    assert "left out: 1 file" in report and "[broken.png]" in report
    assert picture(server.output_dir, outcome.outputs["preview"]["images"][0]).width == WIDTH
    assert "resolution=(48.0, 64.0)" in text_of(outcome, "dataset")


@pytest.mark.parametrize(("saved", "meant"), [(0, "()"), (48, "(48.0,)"), ("", "()"), ("0", "()")])
def test_a_resolution_saved_as_a_number_still_works(
    server: Server, example: Prompt, folder: Path, saved: object, meant: str
) -> None:
    outcome = run(server, graph(example, path=str(folder), resolution=saved))
    assert f"resolution={meant}" in text_of(outcome, "dataset")


def test_a_prompt_from_before_the_new_inputs_still_works(server: Server, example: Prompt, folder: Path) -> None:
    prompt = graph(example, path=str(folder), resolution=0)
    inputs = prompt[find(prompt, "DatasetBucket")]["inputs"]
    for name in ("trigger_word", "horizontal_flip", "alpha_is_mask", "reference_data_dir"):
        inputs.pop(name)
    assert "trigger_word=''" in text_of(run(server, prompt), "dataset")


def test_every_option_reaches_the_dataset(server: Server, example: Prompt, folder: Path) -> None:
    crop = CROP | {"crop": True, "crop_aspect": "closest", "crop_aspect_buckets": "1\n1.5\n", "background": "grey"}
    captions = CAPTIONS | {"shuffle_tags": True, "keep_tags": 1, "caption_variants": 3}
    sampling = SAMPLING | {"probability": 2.0, "start_step": 1, "max_num_samples": 5}
    chain = {
        "crop": {"class_type": "DatasetCrop", "inputs": crop},
        "captions": {"class_type": "DatasetCaptions", "inputs": captions | {"previous_options": ["crop", 0]}},
        "sampling": {"class_type": "DatasetSampling", "inputs": sampling | {"previous_options": ["captions", 0]}},
    }
    given = {"trigger_word": "ohwx", "horizontal_flip": True, "options": ["sampling", 0]}
    shown = text_of(run(server, graph(example, chain, path=str(folder), **given)), "dataset")
    expected = DatasetSpec(
        id="pictures",
        instance_data_dir=str(folder),
        trigger_word="ohwx",
        horizontal_flip=True,
        **(crop | captions | sampling | {"crop_aspect_buckets": ("1", "1.5")}),
    )
    assert shown == str((expected,))


def test_the_widgets_of_the_option_nodes_stand_at_the_defaults(server: Server) -> None:
    info = server.get("/object_info")
    for node, values in (("DatasetCrop", CROP), ("DatasetCaptions", CAPTIONS), ("DatasetSampling", SAMPLING)):
        widgets = info[node]["input"]["optional"]
        assert {name: options["default"] for name, (_, options) in widgets.items() if "default" in options} == values


def test_the_same_option_twice_is_refused(server: Server, example: Prompt, folder: Path) -> None:
    chain = {
        "one": {"class_type": "DatasetSampling", "inputs": SAMPLING | {"probability": 2.0}},
        "two": {"class_type": "DatasetSampling", "inputs": SAMPLING | {"previous_options": ["one", 0]}},
    }
    outcome = queue(server.url, graph(example, chain, path=str(folder), options=["two", 0]))
    assert (outcome.status, outcome.error_node) == ("error", "DatasetSampling")
    assert "probability, start_step, end_step, max_num_samples, disabled came along the chain already" in outcome.error


def test_what_the_options_cannot_mean_is_named_on_the_bucket(server: Server, example: Prompt, folder: Path) -> None:
    chain = {"crop": {"class_type": "DatasetCrop", "inputs": CROP | {"num_crops": 4}}}
    outcome = queue(server.url, graph(example, chain, path=str(folder), options=["crop", 0]))
    assert (outcome.status, outcome.error_node) == ("error", "DatasetBucket")
    assert "num_crops has no effect with crop_style 'center'" in outcome.error


def test_the_report_counts_with_the_batch_size_of_the_training(server: Server, example: Prompt, folder: Path) -> None:
    options = only(example, "TrainingOptions")
    prompt = graph(example, options, path=str(folder), training=[find(options, "TrainingOptions"), 0])
    prompt = change(prompt, "TrainingOptions", train_batch_size=4, gradient_accumulation_steps=3)
    report = text_of(run(server, prompt), "report")
    assert "steps per epoch: 1 at batch size 4, 3 batches a step" in report
    assert "all 3 buckets hold less than a batch of 4" in report


def test_masks_and_references_of_the_graph_are_kept_beside_their_images(server: Server, example: Prompt) -> None:
    size = {"width": 96, "height": 64}
    batch = {
        "images": {"class_type": "EmptyImage", "inputs": {**size, "batch_size": 2, "color": 255}},
        "references": {"class_type": "EmptyImage", "inputs": {**size, "batch_size": 2, "color": 65280}},
        "grey": {"class_type": "EmptyImage", "inputs": {**size, "batch_size": 2, "color": 128}},
        "masks": {"class_type": "ImageToMask", "inputs": {"image": ["grey", 0], "channel": "blue"}},
    }
    given = {"images": ["images", 0], "captions": "first\nsecond", "masks": ["masks", 0], "id": "with masks"}
    outcome = run(server, graph(example, batch, **given))
    assert "masks       2 of 2 pictures have one" in text_of(outcome, "report")
    (masks,) = (server.output_dir / "flux_lora" / "datasets").glob("*-masks")
    with Image.open(masks / "0001.png") as mask:
        assert (mask.mode, mask.size, mask.getpixel((0, 0))) == ("L", (96, 64), 128)
    assert f"mask_data_dir='{masks}'" in text_of(outcome, "dataset")
    assert sorted(path.name for path in masks.with_name(masks.name.removesuffix("-masks")).iterdir()) == [
        "0000.png",
        "0000.txt",
        "0001.png",
        "0001.txt",
    ]
    prompt = graph(example, batch, **given, references=["references", 0])
    assert "reference_data_dir='" in text_of(run(server, prompt), "dataset")
    (references,) = (server.output_dir / "flux_lora" / "datasets").glob("*-references")
    with Image.open(references / "0000.png") as reference:
        assert reference.getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"masks": ["masks", 0]}, "masks and references go with images"),
        ({"masks": ["masks", 0], "images": ["images", 0], "captions": "a\nb"}, "2 images but 1 masks"),
        (
            {"masks": ["masks", 0], "images": ["masks_as_images", 0], "captions": "a", "mask_data_dir": "there"},
            "both masks and mask_data_dir are given",
        ),
    ],
)
def test_masks_that_go_with_nothing_are_refused(server: Server, example: Prompt, inputs: dict[str, Any], message: str) -> None:
    batch = {
        "images": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 255}},
        "masks": {"class_type": "SolidMask", "inputs": {"width": 64, "height": 64, "value": 1.0}},
        "masks_as_images": {"class_type": "MaskToImage", "inputs": {"mask": ["masks", 0]}},
    }
    outcome = queue(server.url, graph(example, batch, **inputs))
    assert (outcome.status, outcome.error_node) == ("error", "DatasetBucket")
    assert message in outcome.error


def test_only_folders_that_hold_pictures_are_offered(server: Server) -> None:
    (server.base_dir / "input" / "empty").mkdir()
    make_pictures(server.base_dir / "input" / "shelf" / "cats", 1)
    offered = server.get("/object_info/DatasetBucket")["DatasetBucket"]["input"]["optional"]["folder"][1]["options"]
    assert offered[0] == "pico demo pictures" and "shelf/cats" in offered
    assert not {"empty", "shelf", "3d"} & set(offered)
