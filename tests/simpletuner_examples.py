"""SimpleTuner's FLUX quickstart as files: each of its examples typed in as it stands there, comments and stray commas included.

A configuration is the guide's list of variables with the example's lines behind, as its readers put it together. What the
guide only names in a sentence, such as a target or a format, is an example of one line.
"""

import json
import shutil
from pathlib import Path

from support import ROOT, make_pictures

FILES = ROOT / "tests" / "simpletuner"
RECOMMENDED = """
  "--model_type": "lora",
  "--model_family": "flux",
  "--model_flavour": "krea",
  "--offload_during_startup": true,
  "--pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev",
  "--pretrained_vae_model_name_or_path": "black-forest-labs/FLUX.1-dev",
  "--output_dir": "output/models",
  "--data_backend_config": "config/multidatabackend.json",
  "--train_batch_size": 1,
  "--validation_resolution": "1024x1024,1280x768,2048x2048",
  "--validation_guidance": 3.5,
  "--validation_guidance_real": 3.0,
  "--validation_negative_prompt": "",
  "--validation_num_inference_steps": 20,
  "--gradient_accumulation_steps": 2,
  "--optimizer": "adamw_bf16",
  "--mixed_precision": "bf16",
  "--gradient_checkpointing": true,
  "--gradient_checkpointing_interval": 2,
  "--max_train_steps": 2,
"""
EXAMPLES = {  # each a few lines of config.json
    "variables": "",
    "lora_rank": '"--lora_rank": 4,',
    "rank 1": '"--lora_rank": 1,',
    "schnell": """
  "model_flavour": "schnell",
  "pretrained_model_name_or_path": "black-forest-labs/FLUX.1-schnell",
  "pretrained_vae_model_name_or_path": "black-forest-labs/FLUX.1-schnell",
  "--flux_fast_schedule": true,
""",
    "dev": '"model_flavour": "dev",',
    "kontext": '"model_flavour": "kontext", "pretrained_model_name_or_path": "black-forest-labs/FLUX.1-Kontext-dev",',
    "fluxbooru": '"model_flavour": "fluxbooru", "pretrained_model_name_or_path": "terminusresearch/fluxbooru-v0.3",',
    "libreflux": '"model_flavour": "libreflux", "pretrained_model_name_or_path": "jimmycarter/LibreFlux-SimpleTuner",',
    "optimi-lion": '"optimizer": "optimi-lion",',
    "optimi-stableadamw": '"optimizer": "optimi-stableadamw",',
    "nicknames": '"--user_prompt_library": "config/nicknames.json",',
    "prompt library": '"--user_prompt_library": "config/user_prompt_library.json",',
    "auto shift": '"--flow_schedule_auto_shift": true,',
    "shift 0.1": '"--flow_schedule_shift": 0.1,',
    "shift 4.0": '"--flow_schedule_shift": 4.0,',
    "int8": """
  "base_model_precision": "int8-quanto",
  "text_encoder_1_precision": "no_change",
  "text_encoder_2_precision": "no_change",
  "lora_rank": 16,
  "max_grad_norm": 1.0,
  "base_model_default_dtype": "bf16",
""",
    "lora settings": (FILES / "lora_settings.txt").read_text(encoding="utf-8"),
    "loftq on nf4": '"--flux_lora_target": "mmdit", "--lora_init_type": "loftq", "--base_model_precision": "nf4-bnb",',
    "context+ffs": '"--flux_lora_target": "context+ffs", "--lora_init_type": "pissa",',
    "all+ffs": '"--flux_lora_target": "all+ffs", "--lora_init_type": "default",',
    "context": '"--flux_lora_target": "context", "--lora_init_type": "gaussian",',
    "olora": '"--flux_lora_target": "mmdit", "--lora_init_type": "olora",',
    "tiny": '"--flux_lora_target": "tiny",',
    "nano": '"--flux_lora_target": "nano",',
    "hub and tracker": '"--push_to_hub": true, "--report_to": "wandb", "hub_model_id": "someone/ohwx",',
    "lowest memory": """
  "base_model_precision": "nf4-bnb",
  "optimizer": "bnb-lion8bit-paged",
  "quantize_via": "cpu",
  "attention_mechanism": "sageattention",
  "max_grad_norm": 0.01,
  "vae_enable_tiling": true,
  "gradient_accumulation_steps": 1,
""",
    "tread": (FILES / "tread.json").read_text(encoding="utf-8").strip()[1:-1].strip() + ",",
    "guidance": '"--flux_guidance_value": 3.5,',
    "guidance 4.5": '"--flux_guidance_value": 4.5,',
    "int4": '"--base_model_precision": "int4-quanto",',
    "int2": '"--base_model_precision": "int2-quanto",',
    "nf4": '"--base_model_precision": "nf4-bnb", "--optimizer": "bnb-adamw8bit", "--max_grad_norm": 0.01,',
    "int8 with compile": '"--base_model_precision": "int8-quanto", "--dynamo_backend": "inductor",',
    "bf16": '"--base_model_precision": "bf16", "--quantize_via": "accelerator",',
    "standard": '"--lora_type": "standard", "--learning_rate": 1e-4,',
    "lokr": '"--lora_type": "lycoris", "--optimizer": "bnb-adamw8bit", "--learning_rate": "1e-3",',
    "lokr with lion": '"--lora_type": "lycoris", "--optimizer": "optimi-lion", "--learning_rate": "2e-4",',
    "dev2pro": """
    "model_family": "flux",
    "pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev",
    "pretrained_transformer_model_name_or_path": "ashen0209/Flux-Dev2Pro",
    "pretrained_vae_model_name_or_path": "black-forest-labs/FLUX.1-dev",
    "pretrained_transformer_subfolder": "none",
""",
}
CROPS = {  # each what all datasets say of crops; the guide names no aspects for random, which needs some
    "square": {"crop": True, "crop_aspect": "square", "crop_style": "random"},
    "random": {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [1.0, 1.5]},
}


def simpletuner_dir(folder: Path, example: str = "", *, small: bool = False, crops: str = "") -> Path:
    """SimpleTuner's folder with this configuration; returns its config.json. `small`: sizes as pico's pictures have them."""
    config = folder / "config"
    config.mkdir(parents=True)
    lines = '"--seed": 7,\n' + _without(RECOMMENDED, example) + example
    (config / "config.json").write_text("{" + lines + "\n}\n", encoding="utf-8")
    backends = (FILES / "multidatabackend.json").read_text(encoding="utf-8")
    if small:
        backends = backends.replace(": 1024", ": 64").replace(": 512", ": 48").replace(": 1000", ": 1")
    if crops:
        backends = json.dumps([entry | CROPS[crops] for entry in json.loads(backends)])
    (config / "multidatabackend.json").write_text(backends, encoding="utf-8")
    for name in ("user_prompt_library.json", "nicknames.json"):
        shutil.copy(FILES / name, config)
    for name in ("pseudo-camera-10k", "dreambooth-subject"):
        make_pictures(folder / "datasets" / name, 3)
    return config / "config.json"


def _without(text: str, example: str) -> str:
    """The lines of options that the example does not say itself."""
    lines = text.strip().splitlines()
    return "\n".join(line for line in lines if f'{line.split(chr(34))[1].lstrip("-")}"' not in example) + "\n"


def library() -> dict[str, str]:
    return json.loads((FILES / "user_prompt_library.json").read_text(encoding="utf-8"))
