"""Train pico's transformer and text encoders: python -m tools.pretrain_pico.transformer --help  (0.6 s a step).

Rectified flow on the encoded pictures, from nothing. A step takes one canvas size, so that no padding is needed; half of
the steps are 64 x 64. A tenth of the captions is the empty string, which makes real guidance work; the guidance embedder
is told random values, so that it accepts any (nothing is distilled into it). Short captions are read with 16 text
tokens instead of 32 in most of the steps before the last fifth: text is two thirds of the tokens at this size.
Everything random is a function of seed and step, so that a resumed run goes on as if it had not stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file
from tokenizers import Tokenizer

from . import data, files, model, text
from .catalogue import Subject
from .latents import HOME, OTHER_CANVASES
from .scene import PLAIN, PREFIXES, Scene, caption

BATCH = 128
SHORT = 16
SHORT_SHARE = 0.8
OTHER_CANVAS_SHARE = 0.5
EMPTY_CAPTION_SHARE = 0.1
KIND_SHARES = {"plain": 0.5, "one thing said": 0.3, "mixed": 0.2}
AVERAGE_DECAY = 0.995


@dataclass(frozen=True)
class Pictures:
    """The encoded pictures of one canvas size, and which of them are plain, say one thing, or mix."""

    latent_NCHW: torch.Tensor
    subject_N: torch.Tensor
    scene_N: torch.Tensor
    by_kind: dict[str, torch.Tensor]


def kind_of(scene: Scene) -> str:
    if scene == PLAIN:
        return "plain"
    mixed = scene.background != PLAIN.background and (scene.size, scene.place) != (PLAIN.size, PLAIN.place)
    return "mixed" if mixed else "one thing said"


def load_pictures(folder: Path, scenes: list[Scene], canvas: tuple[int, int]) -> Pictures:
    stored = load_file(folder / f"latents_{canvas[0]}x{canvas[1]}.safetensors")
    kinds = [kind_of(scenes[i]) for i in stored["scene"].tolist()]
    by_kind = {kind: torch.tensor([i for i, own in enumerate(kinds) if own == kind]) for kind in KIND_SHARES}
    return Pictures(stored["latents"], stored["subject"], stored["scene"], by_kind)


class Batches:
    """What a step sees: latents, token ids, noise, sigma and guidance, all drawn from (seed, step)."""

    def __init__(self, latents_dir: Path, subjects: list[Subject], tokenizer: Tokenizer, seed: int, num_steps: int):
        self.scenes = [Scene(*values) for values in json.loads((latents_dir / "scenes.json").read_text())]
        self.pictures = {canvas: load_pictures(latents_dir, self.scenes, canvas) for canvas in (HOME, *OTHER_CANVASES)}
        self.subjects, self.tokenizer, self.seed, self.num_steps = subjects, tokenizer, seed, num_steps

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        chance = random.Random(f"transformer {self.seed} {step}")
        generator = torch.Generator().manual_seed(hash((self.seed, step)) & 0x7FFFFFFF)
        is_other = chance.random() < OTHER_CANVAS_SHARE
        sizes = [width * height for width, height in OTHER_CANVASES]  # the larger, the oftener: they are harder to learn
        canvas = chance.choices(OTHER_CANVASES, sizes)[0] if is_other else HOME
        is_short = chance.random() < SHORT_SHARE and step < 0.8 * self.num_steps and not is_other
        tokens = canvas[0] * canvas[1] // 256
        size = BATCH if not is_other else max(32, BATCH * 48 // (tokens + text.MAX_LENGTH) // 8 * 8)
        chosen, captions = self.choose(self.pictures[canvas], size, chance, is_short)
        sigma = torch.sigmoid(torch.randn(size, generator=generator))
        clean = model.pack(self.pictures[canvas].latent_NCHW[chosen].float())
        return {
            "x": clean,
            "ids": text.token_ids(self.tokenizer, captions, SHORT if is_short else text.MAX_LENGTH),
            "eps": torch.randn(clean.shape, generator=generator),
            "sigma": 2.0 * sigma / (1.0 + sigma),
            "guidance": 1.0 + 3.0 * torch.rand(size, generator=generator),
            "image_ids": model.image_ids(canvas[1] // 8, canvas[0] // 8, torch.device("cpu")),
        }

    def choose(self, pictures: Pictures, size: int, chance: random.Random, is_short: bool):
        """Indices of pictures, and a caption for each; with is_short only what fits into SHORT tokens."""
        kinds = list(KIND_SHARES)
        chosen, captions = [], []
        while len(chosen) < size:
            kind = chance.choices(kinds, KIND_SHARES.values())[0]
            pick = int(pictures.by_kind[kind][chance.randrange(len(pictures.by_kind[kind]))])
            name = self.subjects[int(pictures.subject_N[pick])].name
            words = caption(name, self.scenes[int(pictures.scene_N[pick])], chance.choice(PREFIXES))
            words = "" if chance.random() < EMPTY_CAPTION_SHARE else words
            if is_short and len(words.split()) > SHORT - 5:
                continue
            chosen.append(pick)
            captions.append(words)
        return torch.tensor(chosen), captions


def optimizers(network: torch.nn.Module, encoders: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else (embeddings, modulations, norms, text encoders)."""
    inside = {
        name: tensor
        for name, tensor in network.named_parameters()
        if tensor.ndim == 2 and "blocks." in name and "norm" not in name
    }
    rest = [tensor for name, tensor in network.named_parameters() if name not in inside] + list(encoders.parameters())
    muon = torch.optim.Muon(list(inside.values()), lr=1.0, weight_decay=0.01, ns_steps=3, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.95), weight_decay=0.01, fused=True)]


def train(batches: Batches, out_dir: Path, num_steps: int, rate: float) -> None:
    device = files.device()
    torch.manual_seed(batches.seed)
    network, encoders = model.new_transformer().to(device), text.TextEncoders().to(device)
    both = torch.nn.ModuleDict({"network": network, "encoders": encoders})
    steppers = optimizers(network, encoders)
    average = {name: tensor.clone() for name, tensor in both.state_dict().items()}
    first, saved = 0, files.load_checkpoint(out_dir)
    if saved is not None:
        both.load_state_dict(saved["model"])
        for stepper, state in zip(steppers, saved["optimizers"], strict=True):
            stepper.load_state_dict(state)
        average, first = saved["average"], saved["step"]
    compiled = torch.compile(network, dynamic=False)
    began, running = time.process_time(), None
    for step in range(first, num_steps):
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = files.cosine_rate(step, num_steps, rate, warm_up=150)
        batch = {name: tensor.to(device) for name, tensor in batches(step).items()}
        sigma = batch["sigma"].view(-1, 1, 1)
        x_sigma = (1.0 - sigma) * batch["x"] + sigma * batch["eps"]
        is_home = batch["x"].shape[:2] == (BATCH, HOME[0] * HOME[1] // 256)
        with files.in_bf16(device):
            sequence, pooled = encoders(batch["ids"])
            chosen = compiled if is_home else network
            velocity = model.predict(chosen, x_sigma, batch["sigma"], batch["guidance"], sequence, pooled, batch["image_ids"])
        loss = functional.mse_loss(velocity.float(), batch["eps"] - batch["x"])
        both.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        decay = min(AVERAGE_DECAY, step / (step + 10))
        torch._foreach_lerp_(list(average.values()), list(both.state_dict().values()), 1.0 - decay)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if step % 50 == 0:
            print(f"{step} {time.process_time() - began:.0f}s loss {running:.4f}", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == num_steps:
            state = {"model": both.state_dict(), "average": average, "step": step + 1}
            files.save_checkpoint(out_dir, state | {"optimizers": [stepper.state_dict() for stepper in steppers]})


def load(folder: Path) -> tuple[torch.nn.Module, text.TextEncoders]:
    """The trained transformer and text encoders (running average), fp32, ready to use."""
    saved = files.load_checkpoint(folder)
    if saved is None:
        raise FileNotFoundError(f"nothing trained in {folder}: run python -m tools.pretrain_pico.transformer first")
    network, encoders = model.new_transformer(), text.TextEncoders()
    torch.nn.ModuleDict({"network": network, "encoders": encoders}).load_state_dict(saved["average"])
    return network.eval().requires_grad_(False), encoders.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    subjects, _ = data.load(arguments.data)
    batches = Batches(arguments.latents, subjects, text.load_tokenizer(arguments.data), arguments.seed, arguments.steps)
    train(batches, arguments.out, arguments.steps, arguments.rate)


if __name__ == "__main__":
    main()
