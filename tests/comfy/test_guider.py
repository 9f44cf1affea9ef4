"""AdaptiveGuider: ComfyUI's CFGGuider when it has nothing to do, and the same numbers whenever it is asked again."""

import re
from typing import Any

import pytest
import torch
from comfy_client import Outcome, queue
from comfy_server import Server
from graphs import Prompt, change, find, only
from safetensors.torch import load_file

STEPS = 5


def sampling(example: Prompt, sampler: str, **rules: Any) -> Prompt:
    """The example up to the latent, which is saved exactly."""
    prompt = change(only(example, "SamplerCustomAdvanced"), "KSamplerSelect", sampler_name=sampler)
    prompt = change(prompt, "BasicScheduler", steps=STEPS)
    prompt = change(prompt, "EmptySD3LatentImage", batch_size=2)
    prompt = change(prompt, "AdaptiveGuider", **{"threshold": 1.0, **rules})
    return save(prompt, "saved", find(prompt, "SamplerCustomAdvanced"))


def save(prompt: Prompt, node_id: str, source: str) -> Prompt:
    inputs = {"samples": [source, 0], "filename_prefix": f"latents/{node_id}"}
    return prompt | {node_id: {"class_type": "SaveLatent", "inputs": inputs}}


def with_cfg_guider(prompt: Prompt, **inputs: Any) -> Prompt:
    """The same graph with ComfyUI's own guider."""
    guider = find(prompt, "AdaptiveGuider")
    kept = {name: prompt[guider]["inputs"][name] for name in ("model", "positive", "negative", "cfg")}
    return prompt | {guider: {"class_type": "CFGGuider", "inputs": kept | inputs}}


def latent(server: Server, prompt: Prompt, node_id: str = "saved") -> torch.Tensor:
    outcome = queue(server.url, prompt)
    assert outcome.status == "success", outcome.error
    return read(server, outcome, node_id)


def read(server: Server, outcome: Outcome, node_id: str) -> torch.Tensor:
    shown = outcome.outputs[node_id]["latents"][0]
    return load_file(server.output_dir / shown["subfolder"] / shown["filename"])["latent_tensor"]


def counts(server: Server) -> tuple[int, int]:
    """How many evaluations of the last run had CFG on, and how many there were."""
    guided, evaluations = re.findall(r"CFG on in (\d+) of (\d+) evaluations", server.log())[-1]
    return int(guided), int(evaluations)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_switched_off_it_is_comfyui_s_guider_bit_for_bit(
    server: Server, example: Prompt, trained: Outcome, sampler: str
) -> None:
    prompt = sampling(example, sampler)
    adaptive = latent(server, prompt)
    guided, evaluations = counts(server)
    assert guided == evaluations
    assert torch.equal(adaptive, latent(server, with_cfg_guider(prompt)))


def test_with_all_steps_disabled_it_is_cfg_1(server: Server, example: Prompt, trained: Outcome) -> None:
    prompt = sampling(example, "euler", initial_disabled_steps=STEPS)
    assert torch.equal(latent(server, prompt), latent(server, with_cfg_guider(prompt, cfg=1.0)))


@pytest.mark.parametrize(
    ("sampler", "rules", "expected"),
    [
        ("euler", {"initial_disabled_steps": 2}, (STEPS - 2, STEPS)),
        ("euler", {"cfg_start_pct": 0.5}, (2, STEPS)),
        ("heun", {"initial_disabled_steps": 2}, (2 * STEPS - 1 - 3, 2 * STEPS - 1)),
    ],
)
def test_cfg_is_on_where_the_rules_say(
    server: Server, example: Prompt, trained: Outcome, sampler: str, rules: dict[str, float], expected: tuple[int, int]
) -> None:
    latent(server, sampling(example, sampler, **rules))
    assert counts(server) == expected


def test_cfg_ends_for_good_once_both_predictions_agree(server: Server, example: Prompt, trained: Outcome) -> None:
    prompt = sampling(example, "euler", threshold=0.99)
    positive = prompt[find(prompt, "AdaptiveGuider")]["inputs"]["positive"]
    latent(server, change(prompt, "AdaptiveGuider", negative=positive))
    assert counts(server) == (1, STEPS)


def test_a_guider_that_was_used_before_gives_the_same_numbers(forgetful: Server, example: Prompt, trained: Outcome) -> None:
    once = sampling(example, "euler", threshold=0.0, initial_disabled_steps=1, uncond_zero_scale=0.9)
    sampler, noise = find(once, "SamplerCustomAdvanced"), find(once, "RandomNoise")
    other_noise = {"class_type": "RandomNoise", "inputs": {"noise_seed": once[noise]["inputs"]["noise_seed"] + 1}}
    other = {"class_type": "SamplerCustomAdvanced", "inputs": once[sampler]["inputs"] | {"noise": ["other noise", 0]}}
    twice = save(once | {"other noise": other_noise, "other": other}, "other saved", "other")
    outcome = queue(forgetful.url, twice)
    assert outcome.status == "success", outcome.error
    used = [read(forgetful, outcome, node_id) for node_id in ("saved", "other saved")]
    forgetful.forget()
    assert torch.equal(used[0], latent(forgetful, once))
    forgetful.forget()
    assert torch.equal(used[1], latent(forgetful, change(once, "RandomNoise", noise_seed=other_noise["inputs"]["noise_seed"])))
