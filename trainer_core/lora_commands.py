"""The commands on adapter files: `flux-lora convert`, `resize`, `merge` and `extract`.

No base is needed: whether a file is for FLUX.1 or for pico its own sizes tell; --base names another model. A file that is there
already is never written over.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import JobError

Report = dict[str, Any]

PRECISIONS = ("bf16", "fp16", "fp32")
TEXTS = {
    "convert": "write a LoRA, LoKr or LoHa under the names that other programs use",
    "resize": "make a LoRA smaller, to a rank or a share of its energy; a LoKr or LoHa becomes a LoRA",
    "merge": "add several LoRAs up, each with a weight: exact, or to a rank",
    "extract": "make a LoRA of what differs between a trained model and the one it was trained from",
}


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """All four, through the function that adds a command to the parser."""
    convert = command("convert", _convert, show, TEXTS["convert"], runs=False)
    convert.add_argument("lora", type=Path, metavar="LORA.safetensors")
    convert.add_argument(
        "--to",
        required=True,
        choices=("diffusers", "kohya", "diffusion_model"),
        help="diffusers: transformer.*; kohya: lora_unet_*; diffusion_model: the original's names as ComfyUI has them",
    )
    resize = command("resize", _resize, show, TEXTS["resize"], runs=False)
    resize.add_argument("lora", type=Path, metavar="LORA.safetensors")
    merge = command("merge", _merge, show, TEXTS["merge"], runs=False)
    merge.add_argument("loras", type=Path, nargs="+", metavar="LORA.safetensors")
    merge.add_argument("--weights", default="", help="one for each, with commas, such as 1.0, 0.6 (default: 1 for all)")
    extract = command("extract", _extract, show, TEXTS["extract"], runs=False)
    extract.add_argument("tuned", type=Path, metavar="TUNED", help="the trained model: a file, or diffusers' folder")
    extract.add_argument("base", type=Path, metavar="BASE", help="what it was trained from")
    for sub in (resize, merge, extract):
        sub.add_argument("--rank", type=int, help="at most so many ranks (merge: default exact, the sum of all ranks)")
        sub.add_argument("--energy", type=float, default=1.0, help="no more ranks than hold this share of each layer: 0.95")
    for sub in (convert, resize, merge, extract):
        sub.add_argument("--out", type=Path, required=True, metavar="NEW.safetensors", help="the file to make")
        sub.add_argument("--precision", choices=PRECISIONS, help="format of its numbers (default: as in what it is made from)")
    for sub in (convert, resize, merge):
        sub.add_argument("--base", type=Path, metavar="MODEL", help="the transformer it is for, if neither FLUX.1's nor pico's")


def show(report: Report) -> None:
    ranks = ", ".join(map(str, report["ranks"]))
    size = f"{report['layers']} layers{ranks and f', rank {ranks}'}, {report['parameters']:,} numbers"
    print(f"{report['kind']:<12} {report['path']} ({size})")
    print(f"{'difference':<12} {report['difference']:.2g} of the change, read back; largest {report['worst'][1]:.2g}", end="")
    print(f" in {report['worst'][0]}")
    for note in report["notes"]:
        print(f"{'note':<12} {note}")


def _convert(args: argparse.Namespace) -> Report:
    from .adapter.rework import convert

    return _told(convert(_opened(args, args.lora), args.to, _output(args)))


def _resize(args: argparse.Namespace) -> Report:
    from .adapter.rework import resize

    return _told(resize(_opened(args, args.lora), _wanted(args), _output(args)))


def _merge(args: argparse.Namespace) -> Report:
    from .adapter.rework import merge

    weights = _numbers(args.weights) or [1.0] * len(args.loras)
    if len(weights) != len(args.loras):
        raise JobError(f"--weights has {len(weights)} numbers for {len(args.loras)} LoRAs; give one for each, or none at all")
    wanted = None if args.rank is None and args.energy == 1.0 else _wanted(args)
    sources = [_opened(args, path) for path in args.loras]
    if len({source.shape for source in sources}) > 1:
        names = " and ".join(path.name for path in args.loras)
        raise JobError(f"{names} are for models of different sizes and cannot be added up; give LoRAs for one base")
    return _told(merge(sources, weights, wanted, _output(args)))


def _extract(args: argparse.Namespace) -> Report:
    from .adapter.rework import extract

    for path in (args.tuned, args.base):
        if not path.exists():
            raise JobError(f"there is no model {path}; correct the path")
    return _told(extract(args.tuned, args.base, _wanted(args), _output(args)))


def _told(made: Any) -> Report:
    return made._asdict() | {"path": str(made.path)}


def _opened(args: argparse.Namespace, path: Path) -> Any:
    from .adapter.which_base import open_for_its_base

    return open_for_its_base(path, args.base)


def _output(args: argparse.Namespace) -> Any:
    from .adapter.lora_file import SAVE_DTYPES
    from .adapter.rework import Output

    path = args.out.absolute()
    if path.suffix != ".safetensors":
        raise JobError(f"--out {args.out} must end in .safetensors")
    if path.exists():
        raise JobError(f"--out {args.out} is there already, and nothing is written over; give another name, or delete it")
    return Output(path, SAVE_DTYPES[args.precision] if args.precision else None)


def _wanted(args: argparse.Namespace) -> Any:
    from .adapter.low_rank import Wanted

    if args.rank is None and args.energy == 1.0:
        raise JobError("say how small: --rank 16, or --energy 0.95, or both")
    if args.rank is not None and args.rank < 1:
        raise JobError(f"--rank is {args.rank}; give 1 or more")
    if not 0.0 < args.energy <= 1.0:
        raise JobError(f"--energy is {args.energy:g}; give a share above 0 and up to 1, such as 0.95")
    return Wanted(args.rank or 1 << 30, args.energy)


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.replace(",", " ").split()]
    except ValueError:
        raise JobError(f"--weights {text!r} are no numbers; write them as 1.0, 0.6") from None
