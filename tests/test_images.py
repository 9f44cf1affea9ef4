"""From a file to pixels: every way of storing colour comes out as the colour it means, and what cannot be read says why."""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from support import encoded
from trainer_core.data import colours
from trainer_core.data.buckets import Bucket, Fit, fit_centre
from trainer_core.data.colours import to_alpha
from trainer_core.data.facts import look_at
from trainer_core.data.images import apply_fit, load_rgb
from trainer_core.data.index import index_datasets
from trainer_core.data.sample import Reject
from trainer_core.data.upright import explain_unreadable, load_mask, open_picture, upright_size
from trainer_core.errors import JobError
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.run_dir import PICTURE_SUFFIXES
from trainer_core.specs.dataset import DatasetSpec

SIXTEEN = np.array([[0, 256, 257, 385, 386, 32896, 65535]], dtype=np.uint16)
IN_EIGHT = [0, 1, 1, 1, 2, 128, 255]  # divided by 257 and rounded


def stored(folder: Path, image: Image.Image, name: str = "a.png", **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def reds(image: Image.Image) -> list[int]:
    """The upper row; grey has three equal channels."""
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    return pixels[0, :, 0].tolist()


def greys(image: Image.Image) -> list[int]:
    pixels = np.asarray(image)
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    return reds(image)


def painted(image: Image.Image, *colours_: object) -> Image.Image:
    """Its pixels along the upper row."""
    for x, colour in enumerate(colours_):
        image.putpixel((x, 0), colour)
    return image


# Colour


def test_plain_colour_and_grey_stay_as_they_are(tmp_path):
    row = painted(Image.new("RGB", (3, 1)), (1, 2, 3), (250, 0, 9), (255, 255, 255))
    assert np.array_equal(np.asarray(load_rgb(stored(tmp_path, row))), np.asarray(row))
    assert greys(load_rgb(stored(tmp_path, painted(Image.new("L", (3, 1)), 0, 77, 255)))) == [0, 77, 255]
    assert greys(load_rgb(stored(tmp_path, painted(Image.new("1", (2, 1)), 0, 1)))) == [0, 255]


def test_a_palette_is_looked_up(tmp_path):
    image = painted(Image.new("P", (2, 1)), 0, 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert np.asarray(load_rgb(stored(tmp_path, image))).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(tmp_path, suffix):
    assert greys(load_rgb(stored(tmp_path, Image.fromarray(SIXTEEN), f"a.{suffix}"))) == IN_EIGHT


def test_the_other_order_of_bytes_is_the_same_grey(tmp_path):
    (tmp_path / "big.tiff").write_bytes(big_endian_tiff(SIXTEEN))
    with Image.open(tmp_path / "big.tiff") as image:
        assert image.mode == "I;16B"
    assert greys(load_rgb(tmp_path / "big.tiff")) == IN_EIGHT


def big_endian_tiff(values: np.ndarray) -> bytes:
    """One strip of 16-bit grey, stored as Macintosh programs do."""
    height, width = values.shape
    tags = (
        (256, width),
        (257, height),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, values.size * 2),
    )
    pixels = values.astype(">u2").tobytes()
    entries = b"".join(
        struct.pack(">HHI", tag, 4 if tag in (273, 279) else 3, 1) + struct.pack(">I" if tag in (273, 279) else ">Hxx", value)
        for tag, value in tags
    )
    return struct.pack(">2sHI", b"MM", 42, 8 + len(pixels)) + pixels + struct.pack(">H", len(tags)) + entries + b"\0\0\0\0"


def test_integers_and_floating_point_are_scaled_by_their_range(tmp_path):
    assert greys(load_rgb(stored(tmp_path, Image.fromarray(SIXTEEN.astype(np.int32)), "a.tiff"))) == IN_EIGHT
    unit = Image.fromarray(np.array([[0, 0.25, 0.5, 1]], dtype=np.float32))
    assert greys(load_rgb(stored(tmp_path, unit, "a.tiff"))) == [0, 64, 128, 255]
    bytes_ = Image.fromarray(np.array([[0, 63.6, 128, 255]], dtype=np.float32))
    assert greys(load_rgb(stored(tmp_path, bytes_, "a.tiff"))) == [0, 64, 128, 255]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            np.array([[0, 70_000]], dtype=np.int32),
            r"its values go from 0 to 70000, beyond 0 to 65535; save it with 8 or 16 bits",
        ),
        (np.array([[-1, 5]], dtype=np.float32), r"its values go from -1 to 5, beyond 0 to 255"),
        (np.array([[np.nan, np.nan]], dtype=np.float32), "beyond 0 to 255"),
    ],
)
def test_values_whose_scale_nobody_knows_leave_their_file_out_before_anything_is_encoded(tmp_path, values, words):
    path = stored(tmp_path, Image.fromarray(values), "a.tiff")
    with pytest.raises(JobError, match=words):
        load_rgb(path)
    with pytest.raises(Reject, match=words):
        look_at(path)


def test_lab_is_left_out_with_the_mend(tmp_path):
    with pytest.raises(Reject, match="its colours are stored as LAB; save it as RGB"):
        look_at(stored(tmp_path, Image.new("LAB", (4, 4)), "a.tiff"))


def without_adobe(data: bytes) -> bytes:
    """A JPEG without the segment by which Adobe's programs say that it is theirs."""
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


def test_cmyk_is_ink_and_only_adobes_jpeg_is_inverted(tmp_path):
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan: red
    assert load_rgb(stored(tmp_path, ink, "a.tiff")).getpixel((8, 8)) == (255, 0, 0)
    adobe = stored(tmp_path, ink, "adobe.jpg", quality=100)
    assert b"Adobe" in adobe.read_bytes()
    red, green, blue = load_rgb(adobe).getpixel((8, 8))
    assert red >= 253 and green <= 2 and blue <= 2
    plain = Image.new("CMYK", (16, 16), (255, 0, 0, 255))  # Pillow writes it inverted, so that the file holds the ink itself
    (tmp_path / "plain.jpg").write_bytes(without_adobe(stored(tmp_path, plain, "inverted.jpg", quality=100).read_bytes()))
    red, green, blue = load_rgb(tmp_path / "plain.jpg").getpixel((8, 8))
    assert red >= 253 and green <= 2 and blue <= 2


def test_a_colour_profile_is_not_applied(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert load_rgb(stored(tmp_path, Image.new("RGB", (2, 2), (9, 99, 200)), icc_profile=profile)).getpixel((0, 0)) == (
        9,
        99,
        200,
    )


# Transparency


def test_the_background_shows_through_what_is_transparent(tmp_path):
    clear = painted(Image.new("RGBA", (3, 1)), (200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 51))
    path = stored(tmp_path, clear)
    assert np.asarray(load_rgb(path)).tolist() == [[[200, 0, 0], [255, 255, 255], [244, 204, 204]]]
    assert np.asarray(load_rgb(path, "black")).tolist() == [[[200, 0, 0], [0, 0, 0], [40, 0, 0]]]
    assert np.asarray(load_rgb(path, "#0000ff")).tolist() == [[[200, 0, 0], [0, 0, 255], [40, 0, 204]]]


def test_every_kind_of_transparency_is_seen(tmp_path):
    grey = painted(Image.new("LA", (2, 1)), (100, 255), (100, 0))
    assert greys(load_rgb(stored(tmp_path, grey), "black")) == [100, 0]
    palette = painted(Image.new("P", (2, 1)), 0, 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert reds(load_rgb(stored(tmp_path, palette, transparency=1), "black")) == [10, 0]
    assert reds(load_rgb(stored(tmp_path, palette, transparency=bytes([0, 255])), "black")) == [0, 200]
    keyed = painted(Image.new("RGB", (2, 1)), (1, 2, 3), (1, 2, 4))
    assert reds(load_rgb(stored(tmp_path, keyed, transparency=(1, 2, 4)), "#630000")) == [1, 99]


def test_sixteen_bits_may_have_one_transparent_grey(tmp_path):
    path = stored(tmp_path, Image.fromarray(SIXTEEN), "a.png", transparency=257)
    with Image.open(path) as image:
        assert image.info["transparency"] == 257
        assert np.asarray(to_alpha(image)).tolist() == [[255, 255, 0, 255, 255, 255, 255]], "256 is another grey"
    assert greys(load_rgb(path, "#636363")) == [0, 1, 99, 1, 2, 128, 255]


def test_what_is_opaque_is_its_own_alpha(tmp_path):
    clear = painted(Image.new("LA", (3, 1)), (9, 255), (200, 0), (9, 51))
    assert np.asarray(load_mask(*[stored(tmp_path, clear)] * 2)).tolist() == [[255, 0, 51]]
    assert np.asarray(load_mask(*[stored(tmp_path, Image.new("RGB", (2, 1)), "b.png")] * 2)).tolist() == [[255, 255]]


def test_another_background_makes_other_latents_of_transparent_pictures(tmp_path):
    clear = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 32, 64))
    (tmp_path / "pictures").mkdir()
    stored(tmp_path / "pictures", clear)
    latents = []
    for background in ("white", "#204060"):
        spec = DatasetSpec(instance_data_dir=str(tmp_path / "pictures"), caption_strategy="filename", background=background)
        (sample,) = index_datasets((spec,), FLAVOURS["pico"]).samples
        latents.append(encoded([sample], tmp_path / "cache").latent(sample))
    difference = (latents[0] - latents[1]).abs().mean(dim=(0, 1))
    assert difference[:3].min() > 0.05 and difference[-1] < difference[:3].min()


@pytest.mark.parametrize("colour", ["whitish", "#12", "", "  ", "#ffffff80", "rgba(1, 2, 3, 4)"])
def test_a_background_that_is_no_opaque_colour_is_refused(colour):
    with pytest.raises(ValueError, match=r"background|at least 1"):
        DatasetSpec(instance_data_dir="x", background=colour)


@pytest.mark.parametrize("colour", ["white", " Tomato ", "#fff", "#102030"])
def test_a_background_is_a_name_or_a_number(colour):
    assert DatasetSpec(instance_data_dir="x", background=colour).background == colour.strip()


# Turns, frames and formats


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "P"])
def test_every_mode_is_turned_upright(tmp_path, orientation, mode):
    """The same turn for all of them, and the size that the index knows."""
    grey = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = stored(tmp_path, image, exif=exif)
    turned = load_rgb(path)
    assert upright_size(path) == turned.size == ((2, 3) if orientation >= 5 else (3, 2))
    expected = {
        1: [[0, 40, 80], [120, 160, 200]],
        2: [[80, 40, 0], [200, 160, 120]],
        3: [[200, 160, 120], [80, 40, 0]],
        4: [[120, 160, 200], [0, 40, 80]],
        5: [[0, 120], [40, 160], [80, 200]],
        6: [[120, 0], [160, 40], [200, 80]],
        7: [[200, 80], [160, 40], [120, 0]],
        8: [[80, 200], [40, 160], [0, 120]],
    }
    assert np.asarray(turned)[..., 0].tolist() == expected[orientation]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_is_shown(tmp_path, suffix):
    first, second = Image.new("RGB", (20, 20), (200, 0, 0)), Image.new("RGB", (20, 20), (0, 0, 200))
    options = {"lossless": True} if suffix == "webp" else {}
    path = stored(tmp_path, first, f"a.{suffix}", save_all=True, append_images=[second], **options)
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert load_rgb(path).getpixel((10, 10)) == (200, 0, 0)


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES))
def test_each_format_is_read_and_found_by_the_index(tmp_path, suffix):
    if suffix == ".jxl":
        pytest.importorskip("pillow_jxl", reason="JPEG XL needs pillow-jxl-plugin")
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = stored(tmp_path, Image.new("RGB", (64, 64), (200, 100, 50)), f"a{suffix}")
    assert max(abs(one - other) for one, other in zip(load_rgb(path).getpixel((9, 9)), (200, 100, 50), strict=True)) <= 6
    spec = DatasetSpec(instance_data_dir=str(tmp_path), caption_strategy="filename")
    assert [sample.path for sample in index_datasets((spec,), FLAVOURS["pico"]).samples] == [path]


# What cannot be read


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path, width: int, height: int) -> Path:
    """A file of some bytes that says that it is so large."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_too_large_to_unpack_is_left_out_also_where_pillow_only_warns(tmp_path):
    warned, refused = bomb(tmp_path / "a.png", 10_000, 9_000), bomb(tmp_path / "b.png", 40_000, 40_000)
    words = r"a\.png cannot be read \(10000x9000 are 90\.0 megapixels, above the limit of 89\.5; scale it down\)"
    for look, error in ((look_at, Reject), (load_rgb, JobError)):
        with pytest.raises(error, match=words):
            look(warned)
        with pytest.raises(error, match=r"b\.png cannot be read \(it is above the limit of 89\.5 megapixels; scale it down\)"):
            look(refused)


def test_the_limit_is_pillows_own():
    assert colours.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.png", b"", "it is empty"),
        ("a.avif", b"\0\0\0\x20ftypavif\0\0\0\0", None),
        ("a.png", b"\0\0\0\x20ftypheic\0\0\0\0mif1heic", "it is HEIC, which Pillow cannot decode; save it as jpg or png"),
        ("a.jxl", b"\xff\x0a\xfa\x1f", None),
        ("a.png", b"dear diary", "cannot identify image file"),
    ],
)
def test_what_is_no_picture_says_what_it_is(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(JobError) as caught:
        load_rgb(tmp_path / name)
    assert f"picture {tmp_path / name} cannot be read (" in str(caught.value)
    assert str(caught.value).endswith("); replace it or take it out of the folder")
    assert words is None or words in str(caught.value)


def test_a_file_whose_decoder_is_missing_says_what_to_install(tmp_path, monkeypatch):
    """Told by its first bytes, as where a Pillow without these decoders gives up; the name does not matter."""
    for start, words in (
        (b"\xff\x0a\xfa\x1f", "it is JPEG XL, for which Pillow needs a plug-in: pip install pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pip install pillow-jxl-plugin"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", 'it is AVIF, which this Pillow cannot decode: pip install "pillow>=11.3"'),
        (b"\0\0\0\x20ftypmif1\0\0\0\0avifmif1", "it is AVIF"),
    ):
        (tmp_path / "a.png").write_bytes(start)
        assert words in explain_unreadable(tmp_path / "a.png", Image.UnidentifiedImageError("cannot identify image file"))
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    open_picture.__globals__["_register_jxl"].cache_clear()
    if ".jxl" not in Image.registered_extensions():
        (tmp_path / "b.jxl").write_bytes(b"\xff\x0a\xfa\x1f")
        with pytest.raises(Reject, match="pip install pillow-jxl-plugin"):
            look_at(tmp_path / "b.jxl")


def test_truncated_pictures_are_named(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "webp", "gif", "tiff", "bmp"):
        path = stored(tmp_path, noise, f"a.{suffix}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(JobError, match=rf"a\.{suffix} cannot be read \(.+\); replace it"):
            load_rgb(path)


# From the picture to its bucket


def test_only_what_is_kept_is_computed_and_it_is_what_resizing_all_would_show():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8))
    smooth = noise.resize((20, 9)).resize((200, 90), Image.Resampling.BICUBIC)
    bucket, fit = Bucket(64, 48), Fit(150, 68, 31, 7)
    whole = smooth.resize((150, 68), Image.Resampling.LANCZOS).crop((31, 7, 95, 55))
    assert np.abs(np.asarray(apply_fit(smooth, fit, bucket), dtype=int) - np.asarray(whole, dtype=int)).max() <= 1


def test_a_crop_without_a_resize_is_exact():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8))
    for left, top in ((0, 0), (37, 11), (136, 42)):
        found = apply_fit(noise, Fit(200, 90, left, top), Bucket(64, 48))
        assert np.array_equal(np.asarray(found), np.asarray(noise.crop((left, top, left + 64, top + 48))))


def test_the_longest_picture_is_no_larger_than_its_bucket_on_the_way():
    bucket = Bucket(64, 16_384)
    fit = fit_centre(1, 30_000, bucket)
    assert fit.height == 1_920_000
    stripe = Image.linear_gradient("L").resize((1, 30_000)).convert("RGB")
    found = np.asarray(apply_fit(stripe, fit, bucket))
    assert found.shape == (16_384, 64, 3) and found.min() >= 120 and found.max() <= 135, "the middle of black to white"


@pytest.mark.parametrize("size", [(30_000, 7), (7, 30_000), (4001, 2999), (1, 1)])
def test_any_crop_of_any_picture_has_the_size_of_its_bucket(size):
    image = Image.new("L", size, 7)
    for bucket in (Bucket(64, 48), Bucket(48, 80)):
        fit = fit_centre(*size, bucket)
        over = fit.width - bucket.width, fit.height - bucket.height
        for left, top in ((0, 0), over, (over[0] // 3, over[1] // 3)):
            for mirrored in (False, True):
                found = apply_fit(image, Fit(fit.width, fit.height, left, top, mirrored), bucket)
                assert found.size == bucket and found.getextrema() == (7, 7)
