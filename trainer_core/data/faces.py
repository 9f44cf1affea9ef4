"""Where the face is, for crops that are to keep it.

The detectors are the cascades that come with OpenCV 4 and with scikit-image: small, without a model to download. OpenCV's is
taken where both are there, because it is wrong less often; OpenCV 5 has none any more. They see faces that look at the camera,
and miss profiles. A picture is looked at once in a process, 640 px wide at most, which takes about a tenth of a second.
"""

import importlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import JobError
from .images import load_rgb

LOOKED_AT = 640  # longest edge in pixels
SMALLEST = 32  # pixels of these; smaller finds are mostly none
REMEMBERED = 1 << 17

Box = tuple[int, int, int, int]  # left, top, width, height
Detector = Callable[[np.ndarray], list[Box]]


@lru_cache(maxsize=REMEMBERED)
def find_face(path: Path, digest: str) -> tuple[float, float] | None:
    """The middle of the largest face, as shares of the upright picture's width and height; `digest` is the content's.

    JobError where the picture cannot be read, or nothing here finds faces.
    """
    grey = load_rgb(path).convert("L")
    grey.thumbnail((LOOKED_AT, LOOKED_AT), Image.Resampling.BILINEAR)
    boxes = detector()(np.asarray(grey))
    if not boxes:
        return None
    left, top, width, height = max(boxes, key=lambda box: (box[2] * box[3], box))
    return (left + width / 2) / grey.width, (top + height / 2) / grey.height


@lru_cache(maxsize=1)
def detector() -> Detector:
    """The first detector that is installed; JobError that says what to install."""
    for start in (_opencv, _scikit_image):
        try:
            return start()
        except ImportError:
            continue
    raise JobError(
        "crop_style 'face' needs a face detector, and there is none: pip install scikit-image (or opencv-python-headless<5), "
        "or choose another crop_style"
    )


def _opencv() -> Detector:
    cv2 = importlib.import_module("cv2")
    file = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"
    if not hasattr(cv2, "CascadeClassifier") or not file.is_file():
        raise ImportError("this OpenCV comes without its cascades")
    cascade = cv2.CascadeClassifier(str(file))
    return lambda grey: [tuple(map(int, box)) for box in cascade.detectMultiScale(grey, 1.1, 5, minSize=(SMALLEST, SMALLEST))]


def _scikit_image() -> Detector:
    feature, data = importlib.import_module("skimage.feature"), importlib.import_module("skimage.data")
    cascade = feature.Cascade(data.lbp_frontal_face_cascade_filename())

    def find(grey: np.ndarray) -> list[Box]:
        largest = (min(grey.shape),) * 2
        if largest[0] < SMALLEST:
            return []
        found = cascade.detect_multi_scale(grey, 1.2, 1, min_size=(SMALLEST, SMALLEST), max_size=largest)
        return [(box["c"], box["r"], box["width"], box["height"]) for box in found]

    return find
