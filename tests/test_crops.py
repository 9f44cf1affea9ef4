"""Where pictures go: each setting of the geometry changes it, and what is left out says why."""

import logging
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from support import make_pictures
from trainer_core.data.buckets import Fit
from trainer_core.data.crops import place
from trainer_core.data.faces import detector, find_face
from trainer_core.data.images import apply_fit
from trainer_core.data.index import index_datasets
from trainer_core.data.sample import Facts, Index, Reject
from trainer_core.errors import JobError
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.specs.dataset import DatasetSpec

PATH = Path("a.png")


def placed(width: int, height: int, resolution: float = 1024, digest: str = "d", **fields):
    """(bucket, views) at this resolution, on FLUX.1's grid."""
    spec = DatasetSpec(instance_data_dir="x", resolution=[resolution], **fields)
    return place(PATH, Facts(width, height, digest), spec, resolution, 64)


def reason(width: int, height: int, **fields) -> str:
    """Why this picture is left out."""
    with pytest.raises(Reject) as caught:
        placed(width, height, **fields)
    return str(caught.value)


def many(count: int = 300):
    """Digests of so many pictures."""
    return [f"{number:x}" for number in range(count)]


# The bucket


def test_the_resolution_type_says_what_the_resolution_means():
    assert placed(1920, 1080, 512)[0] == (704, 384)
    assert placed(1920, 1080, 0.25, resolution_type="area")[0] == (704, 384)
    assert placed(1920, 1080, 512, resolution_type="pixel")[0] == (896, 512)


def test_without_a_resolution_the_bases_own_is_the_edge_of_a_square_even_where_areas_are_megapixels():
    spec = DatasetSpec(instance_data_dir="x", resolution_type="area", minimum_image_size=0.3)
    assert place(PATH, Facts(1920, 1080, "d"), spec, 1024, 64)[0] == (1344, 768)
    by_edge = DatasetSpec(instance_data_dir="x", resolution_type="pixel")
    assert place(PATH, Facts(1920, 1080, "d"), by_edge, 1024, 64)[0] == (1792, 1024)


def test_without_crop_a_picture_keeps_its_shape_and_with_it_becomes_square():
    assert placed(1920, 1080) == ((1344, 768), (Fit(1365, 768, 10, 0),))
    assert placed(1920, 1080, crop=True) == ((1024, 1024), (Fit(1820, 1024, 398, 0),))
    assert placed(1920, 1080, crop=True, crop_aspect="preserve") == placed(1920, 1080)


@pytest.mark.parametrize("given", [0, 1.5, True, None])
def test_aspects_that_are_no_list_are_refused_in_words(given):
    """Fuzzing found it."""
    with pytest.raises(ValidationError, match="should be a valid tuple"):
        DatasetSpec(instance_data_dir="x", crop_aspect_buckets=given)


def test_weights_of_aspects_are_refused_where_the_closest_is_taken():
    with pytest.raises(ValidationError, match="weights in crop_aspect_buckets have no effect with crop_aspect 'closest'"):
        DatasetSpec(instance_data_dir="x", crop=True, crop_aspect="closest", crop_aspect_buckets=("1", "1.5: 2"))


def test_the_closest_of_the_listed_aspects_is_cropped_to():
    def bucket(width, height, *aspects):
        return placed(width, height, crop=True, crop_aspect="closest", crop_aspect_buckets=aspects)[0]

    assert bucket(1920, 1080, 0.75, 1, 1.5) == (1280, 832)
    assert bucket(1080, 1920, 0.75, 1, 1.5) == (896, 1152)
    assert bucket(1100, 1000, 0.75, 1, 1.5) == (1024, 1024)
    assert bucket(1100, 1000, 0.75, 1.5) != bucket(1100, 1000, 0.75, 1, 1.5)


def test_a_random_aspect_is_drawn_from_the_content_by_weight_and_once_for_all_resolutions():
    def bucket(digest, resolution, *aspects):
        fields = {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": aspects}
        return placed(1920, 1080, resolution, digest, **fields)[0]

    drawn = [bucket(digest, 1024, "1: 3", "1.5") for digest in many(1000)]
    assert set(drawn) == {(1024, 1024), (1280, 832)}
    assert drawn.count((1024, 1024)) / 1000 == pytest.approx(0.75, abs=0.04)
    assert [bucket(digest, 1024, "1: 3", "1.5") for digest in many(1000)] == drawn
    assert [bucket(digest, 512, "1: 3", "1.5") == (512, 512) for digest in many(1000)] == [b == (1024, 1024) for b in drawn]
    assert {bucket(digest, 1024, "1.5") for digest in many(20)} == {(1280, 832)}


# The crop


def test_the_crop_style_says_what_is_kept():
    assert placed(1920, 1080, crop=True, crop_style="center")[1] == (Fit(1820, 1024, 398, 0),)
    assert placed(1920, 1080, crop=True, crop_style="corner")[1] == (Fit(1820, 1024, 0, 0),)
    assert placed(1920, 1080, crop_style="corner")[1] == (Fit(1365, 768, 0, 0),), "also of what the grid leaves over"
    drawn = {placed(1920, 1080, digest=digest, crop=True, crop_style="random")[1][0] for digest in many()}
    assert {(fit.width, fit.height, fit.top) for fit in drawn} == {(1820, 1024, 0)}
    lefts = [fit.left for fit in drawn]
    assert 0 <= min(lefts) < 40 and 756 < max(lefts) <= 796 and len(drawn) > 200
    assert sum(lefts) / len(lefts) == pytest.approx(398, abs=30)


def test_several_random_crops_are_a_function_of_the_content_and_share_a_bucket():
    bucket, views = placed(1920, 1080, crop=True, crop_style="random", num_crops=8)
    assert bucket == (1024, 1024) and len(set(views)) == 8
    assert views == placed(1920, 1080, crop=True, crop_style="random", num_crops=8)[1]
    assert views[:1] == placed(1920, 1080, crop=True, crop_style="random")[1]
    assert views != placed(1920, 1080, digest="e", crop=True, crop_style="random", num_crops=8)[1]


def test_crops_of_a_picture_that_leaves_nothing_over_are_one():
    assert placed(1024, 1024, crop_style="random", num_crops=8)[1] == (Fit(1024, 1024, 0, 0),)


def test_a_flip_doubles_the_views_and_the_first_is_as_it_was():
    views = placed(1920, 1080, crop=True, crop_style="random", num_crops=3)[1]
    both = placed(1920, 1080, crop=True, crop_style="random", num_crops=3, horizontal_flip=True)[1]
    assert both == views + tuple(fit._replace(mirrored=True) for fit in views)


def test_a_view_shows_what_it_says():
    gradient = Image.linear_gradient("L").rotate(90).resize((300, 100)).convert("RGB")
    bucket, views = placed(300, 100, 64, crop=True, crop_style="corner", horizontal_flip=True)
    plain, mirrored = (apply_fit(gradient, fit, bucket) for fit in views)
    assert bucket == (64, 64) and plain.size == (64, 64)
    assert plain.getpixel((63, 5))[0] < 100, "the left third of black to white"
    assert mirrored.getpixel((0, 5)) == plain.getpixel((63, 5))


# The size before the crop


LIMITS = {"crop": True, "maximum_image_size": 2048, "target_downsample_size": 1536}


def test_pictures_above_the_maximum_are_brought_to_the_target_before_they_are_cropped():
    assert placed(4000, 3000, **LIMITS) == ((1024, 1024), (Fit(1774, 1330, 375, 153),))
    assert placed(4000, 3000, crop=True)[1] == (Fit(1365, 1024, 170, 0),), "without the two it just covers its bucket"
    assert placed(4000, 3000, **LIMITS | {"target_downsample_size": 2048})[1][0].width == 2365


def test_pictures_below_the_maximum_are_cropped_as_they_are():
    assert placed(2000, 1500, **LIMITS)[1] == (Fit(2000, 1500, 488, 238),)
    assert placed(2000, 1500, **LIMITS | {"maximum_image_size": 1700})[1][0].width == 1774, "the maximum is really compared"


def test_what_is_smaller_than_its_bucket_is_scaled_up_to_cover_it():
    assert placed(800, 600, **LIMITS)[1] == (Fit(1365, 1024, 170, 0),)
    assert placed(2100, 700, **LIMITS)[1] == (Fit(3072, 1024, 1024, 0),)
    assert placed(4000, 3000, **LIMITS | {"target_downsample_size": 512})[1] == (Fit(1365, 1024, 170, 0),)


def test_limits_have_the_unit_of_the_resolution():
    area = {"crop": True, "resolution_type": "area", "maximum_image_size": 4.0, "target_downsample_size": 3.0}
    assert placed(4000, 3000, 1.0, **area)[1][0][:2] == (2000, 1500)
    assert placed(2300, 1700, 1.0, **area)[1][0][:2] == (2300, 1700)
    pixel = {"crop": True, "resolution_type": "pixel", "maximum_image_size": 2000, "target_downsample_size": 1500}
    assert placed(4000, 3000, 1024, **pixel)[1][0][:2] == (2000, 1500)
    assert placed(4000, 1900, 1024, **pixel)[1][0][:2] == (4000, 1900)


# What is left out


def test_small_pictures_are_left_out_by_the_unit_of_the_resolution():
    assert reason(600, 400, minimum_image_size=512) == "600x400 (490 px as a square) is smaller than minimum_image_size 512"
    assert placed(600, 440, minimum_image_size=512)
    area = {"resolution": 1.0, "resolution_type": "area", "minimum_image_size": 0.25}
    assert reason(600, 400, **area) == "600x400 (0.24 megapixels) is smaller than minimum_image_size 0.25"
    assert placed(500, 500, **area)
    pixel = {"resolution_type": "pixel", "minimum_image_size": 512}
    assert reason(3000, 500, **pixel) == "3000x500 (500 px at the shorter edge) is smaller than minimum_image_size 512"
    assert placed(512, 3000, **pixel)


def test_for_a_square_crop_both_edges_must_be_long_enough():
    assert placed(3000, 500, minimum_image_size=512)
    words = "3000x500 (1225 px as a square) has an edge of 500 px, too short for a square crop of minimum_image_size 512"
    assert reason(3000, 500, minimum_image_size=512, crop=True) == words
    assert "an edge of 500 px" in reason(3000, 500, resolution=1.0, resolution_type="area", minimum_image_size=0.26, crop=True)
    assert placed(3000, 500, minimum_image_size=512, crop=True, crop_aspect="preserve")


def test_narrow_and_wide_pictures_are_left_out():
    assert reason(400, 1000, minimum_aspect_ratio=0.5) == "400x1000 (aspect 0.4) is below minimum_aspect_ratio 0.5"
    assert reason(3000, 1000, maximum_aspect_ratio=2.5) == "3000x1000 (aspect 3) is above maximum_aspect_ratio 2.5"
    assert placed(500, 1000, minimum_aspect_ratio=0.5, maximum_aspect_ratio=2.5)


def test_the_index_names_what_it_leaves_out_and_keeps_the_rest(tmp_path):
    make_pictures(tmp_path, 3)
    spec = DatasetSpec(instance_data_dir=str(tmp_path), maximum_aspect_ratio=1.2, num_crops=2, crop_style="random")
    found = index_datasets((spec,), FLAVOURS["pico"])
    assert [sample.path.name for sample in found.samples] == ["ball_0.png", "ball_2.png"]
    assert [(entry.path.name, entry.reason) for entry in found.rejected] == [
        ("ball_1.png", "120x80 (aspect 1.5) is above maximum_aspect_ratio 1.2")
    ]


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (1, 1), (5000, 500), (8000, 10_000)])
@pytest.mark.parametrize(
    "fields", [{}, LIMITS, {"resolution_type": "pixel"}, {"crop_style": "random", "num_crops": 3}], ids=str
)
def test_no_aspect_is_an_error(size, fields):
    bucket, views = placed(*size, **fields)
    for fit in views:
        assert 0 <= fit.left <= fit.width - bucket.width and 0 <= fit.top <= fit.height - bucket.height


def test_sizes_in_the_wrong_unit_are_refused():
    for fields, words in (
        ({"resolution": 1024, "resolution_type": "area"}, "resolution 1024 is in megapixels with resolution_type 'area'"),
        ({"resolution": 1.0}, "resolution 1 is in pixels with resolution_type 'pixel_area'; choose 'area' for megapixels"),
        ({"minimum_image_size": 0.5, "resolution_type": "pixel"}, "minimum_image_size 0.5 is in pixels"),
    ):
        with pytest.raises(ValueError, match=words):
            DatasetSpec(instance_data_dir="x", **fields)


# What it costs


def test_a_hundred_thousand_pictures_are_placed_in_seconds_and_those_of_one_size_share_their_views():
    spec = DatasetSpec(instance_data_dir="x")
    facts = [Facts(600 + number % 50, 600, str(number)) for number in range(20_000)]
    start = time.perf_counter()
    found = [place(PATH, each, spec, 1024, 64) for each in facts]
    assert time.perf_counter() - start < 2, "a fifth of them; 0.06 s on an idle core"
    assert len({id(views) for _, views in found}) == 50
    assert len({id(bucket) for bucket, _ in found}) == len({bucket for bucket, _ in found})


# Faces


@pytest.fixture
def only(monkeypatch):
    """Leaves one module that detects faces, or none, to be imported."""

    def leave(name: str) -> None:
        for module in {"cv2", "skimage", "skimage.feature", "skimage.data"}:
            if module.split(".")[0] != name:
                monkeypatch.setitem(sys.modules, module, None)
        detector.cache_clear()
        find_face.cache_clear()

    yield leave
    detector.cache_clear()
    find_face.cache_clear()


def with_faces(folder: Path) -> Index:
    spec = DatasetSpec(instance_data_dir=str(folder), caption_strategy="filename", crop=True, crop_style="face")
    return index_datasets((spec,), FLAVOURS["pico"])


@pytest.mark.parametrize("module", ["cv2", "skimage"])
def test_the_crop_keeps_the_face_and_what_has_none_is_counted(tmp_path, caplog, only, module):
    data = pytest.importorskip("skimage.data", reason="the photograph of a face is scikit-image's")
    found = pytest.importorskip(module, reason="this detector of faces is not installed")
    if module == "cv2" and not hasattr(found, "CascadeClassifier"):
        pytest.skip("OpenCV 5 has no cascades")
    person = Image.fromarray(data.astronaut()).crop((0, 0, 512, 400))  # the face is at (225, 115)
    for name, left in (("left", 0), ("right", 688)):
        wide = Image.new("RGB", (1200, 400), "grey")
        wide.paste(person, (left, 0))
        wide.save(tmp_path / f"{name}.png")
    Image.new("RGB", (1200, 400), "grey").save(tmp_path / "nobody.png")
    only(module)
    found = {sample.path.name: sample for sample in with_faces(tmp_path).samples}
    for name, middle in (("left.png", 225), ("right.png", 688 + 225)):
        fit = found[name].views[0]
        assert (fit.left + found[name].bucket.width / 2) * 1200 / fit.width == pytest.approx(middle, abs=40)
    assert found["nobody.png"].views == (Fit(192, 64, 64, 0),)
    assert "no face was found in 1 pictures, whose middle is kept: nobody.png" in caplog.text


def test_without_a_detector_it_is_said_once_what_to_install(tmp_path, only):
    make_pictures(tmp_path, 3)
    only("neither")
    with pytest.raises(JobError) as caught:
        with_faces(tmp_path)
    assert str(caught.value) == (
        "crop_style 'face' needs a face detector, and there is none: pip install scikit-image (or opencv-python-headless<5), "
        "or choose another crop_style"
    )


def test_an_unreadable_picture_is_left_out_by_the_search_for_faces_too(tmp_path):
    pytest.importorskip("skimage", reason="needs a detector of faces")
    (tmp_path / "a.png").write_bytes(b"")
    spec = DatasetSpec(instance_data_dir="x", crop=True, crop_style="face")
    with pytest.raises(Reject, match="it is empty"):
        place(tmp_path / "a.png", Facts(60, 60, "d"), spec, 64, 16)


def test_other_crop_styles_look_for_no_faces(tmp_path, caplog):
    make_pictures(tmp_path, 1)
    with caplog.at_level(logging.WARNING):
        index_datasets((DatasetSpec(instance_data_dir=str(tmp_path)),), FLAVOURS["pico"])
    assert "face" not in caplog.text
    with pytest.raises(JobError, match="there is no folder"):
        index_datasets((DatasetSpec(instance_data_dir=str(tmp_path / "none"), crop_style="face"),), FLAVOURS["pico"])
