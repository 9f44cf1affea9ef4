"""What CFG that ends by itself saves, and what it costs: python -m benchmarks.adaptive_cfg [--steps N] [--json]

On pico: predictions made of those that full CFG makes, and the mean squared difference of the pictures' latents to those with
full CFG, beside the difference that sampling without any CFG makes.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from trainer_core.data.encode import encode_captions, open_caches
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.load import load_transformer
from trainer_core.flux.text import EncoderFormat
from trainer_core.specs.validation import ValidationSpec
from trainer_core.validation.sample import Encoded, SamplerSettings, sample_latents, sampler_settings
from trainer_core.validation.shots import Canvas

CPU = torch.device("cpu")
PICO = FLAVOURS["pico"]
SUBJECTS = ("airplane", "automobile", "bear", "bell", "bicycle", "birthday cake", "butterfly", "camera")
THRESHOLDS = (0.8, 0.84, 0.88, 0.92, 0.96, 0.98)
SEEDS = (0, 1)


def encoded(captions: Sequence[str]) -> list[Encoded]:
    """The captions through pico's encoders."""
    encoding = EncoderFormat(torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        caches = open_caches(Path(folder), (), PICO_FILES, PICO, encoding)
        encode_captions(caches, list(captions), PICO_FILES, PICO, encoding, CPU, lambda done, total: None)
        return [Encoded(entry["text"][None], entry["pooled"][None]) for entry in map(caches.text, captions)]


class Counted:
    """pico with a count of its predictions."""

    def __init__(self) -> None:
        self.transformer = load_transformer(PICO_FILES.transformer, torch.float32, CPU)
        self.predictions = 0
        self.transformer.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: object, inputs: object, given: dict[str, torch.Tensor]) -> None:
        self.predictions += len(given["hidden_states"])

    def pictures(self, settings: SamplerSettings) -> tuple[torch.Tensor, int]:
        """Latents of all subjects and seeds, and how many predictions they took."""
        *subjects, nothing = encoded([*SUBJECTS, ""])
        self.predictions = 0
        negatives = [nothing] * len(subjects)
        made = [sample_latents(self.transformer, subjects, negatives, settings, Canvas(64, 64, seed)) for seed in SEEDS]
        return torch.cat(made), self.predictions


def measure(steps: int) -> list[dict[str, object]]:
    """A row for full CFG, none, and each threshold."""
    pico, full = Counted(), sampler_settings(ValidationSpec(validation_num_inference_steps=steps), PICO)
    expected, all_predictions = pico.pictures(full)
    rows: list[dict[str, object]] = []
    cases = [("off", replace(full, guidance_real=1.0)), *((f"{t:g}", replace(full, cfg_threshold=t)) for t in THRESHOLDS)]
    for name, settings in cases:
        found, predictions = pico.pictures(settings)
        difference = (found - expected).square().mean().item()
        rows.append({"cfg": name, "predictions": predictions, "of": all_predictions, "difference": round(difference, 4)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=ValidationSpec().validation_num_inference_steps)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = measure(arguments.steps)
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        saved = 1 - row["predictions"] / row["of"]
        made = f"{row['predictions']} of {row['of']} predictions ({saved:.0%} saved)"
        print(f"cfg {row['cfg']:<5} {made:<40} difference {row['difference']:.4f}")


if __name__ == "__main__":
    main()
