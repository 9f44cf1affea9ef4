"""What the example workflows have in common: the settings that suit pico, and the nodes that picture a trained LoRA."""

from collections.abc import Mapping
from typing import Any

from .graph import Group, Node

TRAINED_ON_FLUX = (
    "For FLUX.1 dev choose your files in *Load FLUX for Training* (and your card's size in **card**), your pictures in "
    "*Dataset Bucket*, mixed_precision bf16, gradient_checkpointing on, learning rate 1e-4, batch size 1, shift 0"
)
FOR_FLUX = f"{TRAINED_ON_FLUX}, guidance 1; for the pictures cfg 1, guidance 3.5 and latents of 1024 x 1024."
SUBJECTS = "airplane\nautomobile\nbear\nbicycle\nbutterfly\ncamera\ncrown\nfish"


def node(key: str, kind: str, links: Mapping[str, str] | None = None, **widgets: Any) -> Node:
    """A node with its links and widgets; `title`, `across` (pixels) and `picture` are its looks."""
    looks = {name: widgets.pop(name) for name in ("title", "across", "picture") if name in widgets}
    return Node(key, kind, links or {}, widgets, **looks)


def base(**widgets: Any) -> Node:
    """float32, since processors without bf16 of their own take many times as long for it."""
    return node("model", "LoadFluxForTraining", **{"mixed_precision": "no", **widgets})


def pictures(key: str = "pictures", links: Mapping[str, str] | None = None, **widgets: Any) -> Node:
    return node(key, "DatasetBucket", {"model": "model", **(links or {})}, **widgets)


def look(key: str, source: str, title: str, height: int = 300) -> Node:
    return node(key, "PreviewImage", {"images": source}, title=title, picture=height)


def tell(key: str, source: str, title: str, height: int = 200) -> Node:
    return node(key, "PreviewAny", {"source": source}, title=title, picture=height)


def optimizer(**widgets: Any) -> Node:
    return node(
        "optimizer",
        "OptimizerConfig",
        **{"learning_rate": 2e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 20, "lr_end": 1e-4, **widgets},
    )


def flow(key: str = "flow", **widgets: Any) -> Node:
    settings = {"flow_schedule_shift": 2.0, "flux_guidance_value": 2.5, "caption_dropout_probability": 0.1}
    return node(key, "FlowScheduleConfig", **{**settings, **widgets})


def lora(**widgets: Any) -> Node:
    return node("lora", "LoRAConfig", **{"flux_lora_target": "all+ffs", **widgets})


def options(**widgets: Any) -> Node:
    return node("options", "TrainingOptions", **{"train_batch_size": 8, "gradient_checkpointing": False, **widgets})


def validation(**widgets: Any) -> Node:
    return node("validation", "ValidationConfig", **{"validation_prompts": SUBJECTS, "across": 420, **widgets})


def train(name: str, steps: int, key: str = "train", dataset: str = "pictures", **links: str) -> Node:
    wired = {"model": "model", "dataset": dataset, "lora": "lora", "optimizer": "optimizer", "flow": "flow"}
    wired |= {"validation": "validation", "options": "options", **links}
    return node(key, "TrainLoRA", wired, name=name, max_train_steps=steps, across=420, picture=420)


def prompts(
    positive: str, *, end: str = "", run: str = "train.TRAIN_RUN", guidance: float = 2.5, **loaded: Any
) -> tuple[Node, ...]:
    """The trained FLUX, and what it is asked for; `end` is put behind every key."""
    return (
        node(f"flux{end}", "LoadTrainedFlux", {"run": run}, **loaded),
        node(f"positive{end}", "CLIPTextEncode", {"clip": f"flux{end}.CLIP"}, text=positive, title="Positive prompt"),
        node(f"negative{end}", "CLIPTextEncode", {"clip": f"flux{end}.CLIP"}, text="", title="Negative prompt"),
        node(f"guided{end}", "FluxGuidance", {"conditioning": f"positive{end}"}, guidance=guidance),
        node(f"unguided{end}", "FluxGuidance", {"conditioning": f"negative{end}"}, guidance=guidance),
    )


def adaptive(end: str = "", asked: tuple[str, str] = ("guided", "unguided"), **rules: Any) -> Node:
    links = {"model": f"flux{end}.MODEL", "positive": f"{asked[0]}{end}", "negative": f"{asked[1]}{end}"}
    return node(f"guider{end}", "AdaptiveGuider", links, **rules)


def noise(end: str = "", batch: int = 4, steps: int = 20) -> tuple[Node, ...]:
    return (
        node(f"noise{end}", "RandomNoise", noise_seed=42),
        node(f"sampler{end}", "KSamplerSelect", sampler_name="euler"),
        node(f"sigmas{end}", "BasicScheduler", {"model": f"flux{end}.MODEL"}, scheduler="simple", steps=steps),
        node(f"latent{end}", "EmptySD3LatentImage", width=64, height=64, batch_size=batch),
    )


def sampled(name: str, end: str = "", title: str = "", latent: str = "") -> tuple[Node, ...]:
    links = {
        "noise": f"noise{end}",
        "guider": f"guider{end}",
        "sampler": f"sampler{end}",
        "sigmas": f"sigmas{end}",
        "latent_image": latent or f"latent{end}",
    }
    return (
        node(f"sample{end}", "SamplerCustomAdvanced", links),
        node(f"decode{end}", "VAEDecode", {"samples": f"sample{end}.output", "vae": f"flux{end}.VAE"}),
        node(
            f"save{end}",
            "SaveImage",
            {"images": f"decode{end}"},
            filename_prefix=f"flux_lora/{name}",
            title=title,
            picture=330,
        ),
    )


def started(reference: str, end: str = "") -> tuple[Node, ...]:
    """Both prompts with the latent that the picture starts from."""
    return tuple(
        node(f"{kind}{end}", "ReferenceLatent", {"conditioning": source, "latent": reference}, title=title)
        for kind, source, title in (
            ("from", f"guided{end}", "Start from this"),
            ("unfrom", f"unguided{end}", "Start from this (negative)"),
        )
    )


def test_group(title: str, name: str, positive: str, **loaded: Any) -> Group:
    """A picture with the trained LoRA, real CFG by the adaptive guider."""
    return Group(title, (prompts(positive, **loaded), (adaptive(), *noise()), sampled(name)))
