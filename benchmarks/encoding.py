"""How fast pictures are encoded, beside a bare loop: python -m benchmarks.encoding [--vae tiny|kl] [--pictures N] [--json]

Ours is `encode_pictures` from files into a cold cache: reading, hashing, decoding, resizing, the VAE, checksums, shards on
disk. The bare loop takes the same VAE over the same pictures, decoded in memory beforehand, one at a time. Both load the VAE
anew in each round, because where its weights lie in memory changes its speed by some percent; loading counts in neither.

The two alternate, with the same number of torch threads, because a shared machine is never equally fast twice; each round
gives one ratio of pictures per second, and the figure is the median of the rounds. Where the VAE computes on the CPU, it is
given fewer threads than there are cores, as a card would leave them free: decoding needs one. Bar: 0.95.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from trainer_core.data.encode import encode_pictures, open_caches, pictures_of
from trainer_core.data.images import apply_fit, load_rgb, to_tensor
from trainer_core.data.index import index_datasets
from trainer_core.data.sample import Sample
from trainer_core.flux.files import PICO_FILES, ModelFiles
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.text import EncoderFormat
from trainer_core.flux.vae import FLUX_VAE, load_vae
from trainer_core.specs.dataset import DatasetSpec

BAR = 0.95
CASES = {"tiny": ("TAEF1", 512), "kl": ("FLUX's VAE", 256)}
NUM_PICTURES = 8
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", choices=CASES, help="one of the two cases alone")
    parser.add_argument("--pictures", type=int, default=NUM_PICTURES)
    parser.add_argument("--pixels", type=int, default=0, help="their edge; 0: 512 for TAEF1, 256 for FLUX's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        kinds = [arguments.vae] if arguments.vae else list(CASES)
        report = {}
        for kind in kinds:
            name, usual = CASES[kind]
            pixels = arguments.pixels or usual
            report[f"{name} at {pixels} px"] = measure(kind, arguments.pictures, pixels, arguments.rounds, Path(folder))
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "pictures": arguments.pictures, **report}))
    else:
        for name, found in report.items():
            print(f"{name}: {found['ratio']} of the bare loop ({found['ours']} and {found['bare']} pictures a second)")


def measure(kind: str, count: int, resolution: int, rounds: int, folder: Path) -> dict[str, object]:
    """The ratio ours / bare of pictures per second, with the spread of the rounds."""
    pictures = make_photos(folder / f"{kind} pictures", count, resolution)
    spec = DatasetSpec(instance_data_dir=str(pictures), resolution=resolution, caption_strategy="filename")
    samples = list(index_datasets((spec,), FLAVOURS["pico"]).samples)
    vae_path = PICO_FILES.vae if kind == "tiny" else random_vae(folder / "vae.safetensors")
    decoded = [
        to_tensor(apply_fit(load_rgb(picture.path), picture.fit, picture.bucket)).unsqueeze(0)
        for picture in pictures_of(samples)
    ]
    ours, bare, ratios = [], [], []
    for number in range(rounds + 1):  # the first warms up and is not counted
        sides = {
            "ours": lambda cache=folder / f"{kind} cache {number}": our_seconds(samples, vae_path, cache),
            "bare": lambda: bare_seconds(vae_path, decoded),
        }
        found = {name: count / sides[name]() for name in sorted(sides, reverse=bool(number % 2))}
        if number:
            ours.append(found["ours"])
            bare.append(found["bare"])
            ratios.append(found["ours"] / found["bare"])
    ratio = statistics.median(ratios)
    return {
        "ratio": round(ratio, 3),
        "bar": BAR,
        "met": ratio >= BAR,
        "ratios": [round(value, 3) for value in sorted(ratios)],
        "ours": round(statistics.median(ours), 2),
        "bare": round(statistics.median(bare), 2),
    }


def our_seconds(samples: list[Sample], vae_path: Path, cache_dir: Path) -> float:
    """From when the VAE is loaded to when all is on disk."""
    files = ModelFiles(**{**vars(PICO_FILES), "vae": vae_path})
    caches = open_caches(cache_dir, samples, files, FLAVOURS["pico"], EncoderFormat(torch.float32))
    began: list[float] = []

    def progress(done: int, total: int) -> None:
        if not done:
            began.append(time.perf_counter())

    encode_pictures(caches, pictures_of(samples), vae_path, CPU, progress)
    return time.perf_counter() - began[0]


def bare_seconds(vae_path: Path, decoded: list[torch.Tensor]) -> float:
    """The VAE alone over pictures in memory, from when it is loaded."""
    vae = load_vae(vae_path, CPU)
    began = time.perf_counter()
    latents = [vae.encode(pixels) for pixels in decoded]
    assert len(latents) == len(decoded)
    return time.perf_counter() - began


def make_photos(folder: Path, count: int, resolution: int) -> Path:
    """JPEG files half as large again as what they are brought to, with the detail of noise that was enlarged."""
    folder.mkdir()
    random, edge = torch.Generator().manual_seed(0), resolution * 3 // 2
    for number in range(count):
        noise = torch.randint(0, 256, (edge // 8, edge // 8, 3), generator=random, dtype=torch.uint8)
        image = Image.fromarray(noise.numpy()).resize((edge, edge), Image.Resampling.BICUBIC)
        image.save(folder / f"photo {number}.jpg", quality=92)
    return folder


def random_vae(path: Path) -> Path:
    """FLUX's VAE in its own sizes, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(AutoencoderKL(**FLUX_VAE).state_dict(), path)
    return path


if __name__ == "__main__":
    main()
