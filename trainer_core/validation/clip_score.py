"""CLIP score and likeness: how well a picture fits its prompt, and how near it is to the pictures that were trained on.

    score    = 100 * max(0, cosine(picture, prompt))         Hessel et al. 2021 (arXiv 2104.08718), without their factor 2.5
    likeness = 100 * mean over training pictures of cosine(picture, training picture)

Both by the same CLIP, in float32. Prompts longer than its context are cut. The numbers of one CLIP compare with each other and
with no other's; on small sets they are noisy. The training pictures' vectors are kept in the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from ..data.cache import Shards, entry_name
from ..data.images import apply_fit, load_rgb
from ..data.sample import Sample
from ..errors import JobError
from ..flux.files import fingerprint

KIND = "likeness"  # of the cache's entries: a vector for each training picture
MOST_COMPARED = 64  # training pictures, evenly spread over them
AT_ONCE = 16


def check_clip(name: str, *, allow_download: bool) -> None:
    """JobError where there is no CLIP of this name; its weights are not read."""
    try:
        CLIPConfig.from_pretrained(name, local_files_only=not allow_download)
        CLIPProcessor.from_pretrained(name, local_files_only=not allow_download)
    except (OSError, ValueError) as error:
        raise _no_clip(name, error) from None
    if Path(name).is_dir() and not any(Path(name).glob("model*.safetensors")):
        raise _no_clip(name, "it has no model.safetensors")


def _no_clip(name: str, reason: object) -> JobError:
    return JobError(
        f"validation.pretrained_evaluation_model_name_or_path: no CLIP could be read from {name} ({reason}); give a "
        "folder with config.json, model.safetensors, the tokenizer and preprocessor_config.json, or allow downloads"
    )


@dataclass(frozen=True)
class Score:
    """Of one picture; both 0 to 100, the likeness may fall below."""

    clip_score: float
    likeness: float


class ClipJudge:
    """A CLIP with what it saw of the training pictures."""

    def __init__(self, name: str, device: torch.device, samples: Sequence[Sample], cache_dir: Path, *, allow_download: bool):
        """`name` is a folder, or a hub id where downloads are allowed; JobError where there is no CLIP."""
        try:
            local = not allow_download
            self._model = CLIPModel.from_pretrained(name, local_files_only=local, use_safetensors=True).to(device).eval()
            self._processor = CLIPProcessor.from_pretrained(name, local_files_only=local)
        except (OSError, ValueError) as error:
            raise _no_clip(name, error) from None
        self._device = device
        self._trained_ND = self._training_pictures(name, samples, cache_dir)

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
        """A score for each picture with its prompt."""
        images_BD, texts_BD = self._images(pictures), self._texts(prompts)
        fits_B = 100 * (images_BD * texts_BD).sum(dim=1).clamp(min=0)
        likeness_B = 100 * (images_BD @ self._trained_ND.T).mean(dim=1)
        return [Score(round(fit, 3), round(near, 3)) for fit, near in zip(fits_B.tolist(), likeness_B.tolist(), strict=True)]

    @torch.no_grad()
    def _images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(N, D) of length 1, on the CPU."""
        parts = []
        for start in range(0, len(pictures), AT_ONCE):
            pixels = self._processor(images=list(pictures[start : start + AT_ONCE]), return_tensors="pt")["pixel_values"]
            parts.append(_vectors(self._model.get_image_features(pixel_values=pixels.to(self._device))))
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)

    @torch.no_grad()
    def _texts(self, prompts: Sequence[str]) -> Tensor:
        """(N, D) of length 1, on the CPU."""
        tokens = self._processor(text=list(prompts), return_tensors="pt", padding=True, truncation=True)
        tokens = {name: tensor.to(self._device) for name, tensor in tokens.items()}
        return torch.nn.functional.normalize(_vectors(self._model.get_text_features(**tokens)), dim=1)

    def _training_pictures(self, name: str, samples: Sequence[Sample], cache_dir: Path) -> Tensor:
        """(N, D): those that are compared with, as they are trained on."""
        by_digest = {sample.facts.digest: sample for sample in samples if not sample.is_regularisation}
        every, count = list(by_digest.values()), min(MOST_COMPARED, len(by_digest))
        chosen = [every[number * len(every) // count] for number in range(count)]
        weights = Path(name) / "model.safetensors"
        identity = fingerprint(weights) if weights.is_file() else name
        named = {entry_name(KIND, identity, s.facts.digest, str(s.bucket), str(s.views[0])): s for s in chosen}
        kept = Shards(cache_dir / KIND)
        kept.check(named)
        if missing := {entry: sample for entry, sample in named.items() if entry not in kept}:
            vectors_ND = self._images(
                [apply_fit(load_rgb(s.path, s.background), s.views[0], s.bucket) for s in missing.values()]
            )
            with kept.writer() as writer:
                for entry, vector_D in zip(missing, vectors_ND, strict=True):
                    writer.add(entry, {"vector": vector_D})
        return torch.stack([kept.read(entry)["vector"] for entry in named])


def _vectors(features: Any) -> Tensor:
    """The projected vectors, which transformers gives alone before version 5 and in a record since."""
    return (features if isinstance(features, Tensor) else features.pooler_output).float().cpu()
