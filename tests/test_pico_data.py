"""The pictures and captions that pico was trained on say the same thing."""

import numpy as np
import pytest

from tools.pretrain_pico.evaluate import composed_scenes, read_scene
from tools.pretrain_pico.scene import BACKGROUNDS, PLAIN, Scene, caption, draw, every_layout, two_tone


@pytest.fixture
def disc() -> np.ndarray:
    """A glyph that needs no font: an opaque teal disc, uint8 RGBA."""
    rows, columns = np.mgrid[:136, :136] - 67.5
    inside = rows**2 + columns**2 < 60**2
    glyph = np.zeros((136, 136, 4), dtype=np.uint8)
    glyph[inside] = (0, 120, 130, 255)
    return glyph


def test_a_plain_caption_is_the_bare_name_and_a_scene_is_said_in_full():
    assert caption("tiger", PLAIN) == "tiger"
    said = caption("tiger", Scene("small", "red", "top left"), "a picture of ")
    assert said == "a picture of small tiger on a red background in the top left"


def test_two_different_scenes_never_have_the_same_caption():
    scenes = [Scene(layout.size, colour, layout.place) for layout in every_layout() for colour in BACKGROUNDS]
    assert len({caption("tiger", scene) for scene in scenes}) == len(set(scenes)) == 110


def test_the_measure_reads_back_every_scene_that_was_drawn(disc):
    for scene in composed_scenes(seed=0):
        assert read_scene(np.array(draw(disc, scene))) == scene


def test_two_tone_has_no_third_colour_direction(disc):
    pixels = np.array(two_tone(draw(disc, PLAIN))).reshape(-1, 3).astype(float)
    spread = np.linalg.svd(pixels - pixels.mean(axis=0), compute_uv=False)
    assert spread[1] < 0.02 * spread[0]
