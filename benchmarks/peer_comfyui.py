"""Starts ComfyUI's TrainLoraNode as its graph would, in ComfyUI's own Python. For `peers.py`, which starts it.

The node gets latents and text that are encoded already, and no server runs, so this side's start is short of both. What it
trains cannot be chosen: every linear layer, bias and norm. (ComfyUI 0.3.64.)
"""

import json
import os

import comfy.options

comfy.options.enable_args_parsing()  # --cpu and the like

import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_train import TrainLoraNode  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def main() -> None:
    with open(os.environ["PEER_REQUEST"], encoding="utf-8") as file:
        request = json.load(file)
    dtype = {"bf16": torch.bfloat16, "no": torch.float32}[request["dtype"]]
    model = comfy.sd.load_diffusion_model(request["model"], model_options={"dtype": dtype})
    encoded = load_file(request["encoded"])
    told = {"pooled_output": encoded["pooled"], "guidance": request["guidance"]}
    name = {"bf16": "bf16", "no": "fp32"}[request["dtype"]]
    TrainLoraNode().train(
        model=model,
        latents={"samples": encoded["latents"]},
        positive=[[encoded["text"], told]],
        batch_size=1,
        steps=request["steps"],
        grad_accumulation_steps=1,
        learning_rate=request["learning_rate"],
        rank=request["rank"],
        optimizer="AdamW",
        loss_function="MSE",
        seed=0,
        training_dtype=name,
        lora_dtype=name,
        algorithm="LoRA",
        gradient_checkpointing=request["recompute"],
        existing_lora="[None]",
    )


if __name__ == "__main__":
    main()
