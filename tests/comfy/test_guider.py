"""AdaptiveGuider: ComfyUI's CFGGuider when it has nothing to do, and the same numbers whenever it is asked again."""

import re
from typing import Any

import pytest
import torch
from comfy_client import Outcome, queue
from comfy_server import PACK_ROOT, Server
from graphs import Prompt, change, find, only
from safetensors.torch import load_file
from test_files import run_in_comfyui

STEPS = 5
SAMPLERS = (
    "euler",
    "euler_ancestral",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2m",
    "res_multistep",
    "seeds_3",
    "uni_pc",
)
HOOKS = {  # nodes that hook into the prediction before, at and after CFG
    "TCFG": {},
    "RescaleCFG": {"multiplier": 0.7},
    "CFGZeroStar": {},
}
REPORT = "flux_lora.guidance"


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
    return prompt | {guider: cfg_guider(prompt, **inputs)}


def cfg_guider(prompt: Prompt, **inputs: Any) -> dict[str, Any]:
    """ComfyUI's own guider, wired as the graph's AdaptiveGuider."""
    given = prompt[find(prompt, "AdaptiveGuider")]["inputs"]
    kept = {name: given[name] for name in ("model", "positive", "negative", "cfg")}
    return {"class_type": "CFGGuider", "inputs": kept | inputs}


def sampled(prompt: Prompt, node_id: str, **sources: str) -> Prompt:
    """The graph with one sampling more, saved as `node_id`; its sources are other nodes than those of the first."""
    inputs = prompt[find(prompt, "SamplerCustomAdvanced")]["inputs"] | {name: [node, 0] for name, node in sources.items()}
    sampler = f"{node_id} sampler"
    return save(prompt | {sampler: {"class_type": "SamplerCustomAdvanced", "inputs": inputs}}, node_id, sampler)


def latent(server: Server, prompt: Prompt, node_id: str = "saved") -> torch.Tensor:
    return read(server, run(server, prompt), node_id)


def run(server: Server, prompt: Prompt) -> Outcome:
    outcome = queue(server.url, prompt)
    assert outcome.status == "success", outcome.error
    return outcome


def read(server: Server, outcome: Outcome, node_id: str) -> torch.Tensor:
    shown = outcome.outputs[node_id]["latents"][0]
    return load_file(server.output_dir / shown["subfolder"] / shown["filename"])["latent_tensor"]


def counts(server: Server) -> tuple[int, int]:
    """How many evaluations of the last run had CFG on, and how many there were."""
    guided, evaluations = re.findall(r"CFG on in (\d+) of (\d+) evaluations", server.log())[-1]
    return int(guided), int(evaluations)


def select(prompt: Prompt) -> Prompt:
    """The graph with a node for each of the samplers, and one small picture: dpm_adaptive alone takes 168 evaluations of it."""
    prompt = change(prompt, "EmptySD3LatentImage", batch_size=1, width=48, height=48)
    return prompt | {name: {"class_type": "KSamplerSelect", "inputs": {"sampler_name": name}} for name in SAMPLERS}


def test_switched_off_it_is_comfyui_s_guider_bit_for_bit_with_twelve_samplers(
    server: Server, example: Prompt, trained: Outcome
) -> None:
    prompt = select(sampling(example, "euler"))
    guider, schedule = find(prompt, "AdaptiveGuider"), prompt[find(prompt, "BasicScheduler")]
    prompt["by comfyui"] = cfg_guider(prompt)
    # with CFGGuider, uni_pc writes into the schedule that is wired to it, which ComfyUI keeps: it gets one of its own
    prompt["for uni_pc"] = schedule | {"inputs": schedule["inputs"] | {"steps": STEPS + 1}}
    for name in SAMPLERS:
        sources = {"sampler": name} | ({"sigmas": "for uni_pc"} if name == "uni_pc" else {})
        prompt = sampled(prompt, f"{name} ours", guider=guider, **sources)
        prompt = sampled(prompt, f"{name} theirs", guider="by comfyui", **sources)
    outcome = run(server, prompt)
    differing = [
        name for name in SAMPLERS if not torch.equal(*(read(server, outcome, f"{name} {side}") for side in ("ours", "theirs")))
    ]
    assert not differing
    assert len({read(server, outcome, f"{name} ours").sum().item() for name in SAMPLERS}) > 8


def test_a_guider_that_was_used_before_gives_the_same_numbers_with_twelve_samplers(
    server: Server, example: Prompt, trained: Outcome
) -> None:
    """One guider for all of them, against a new one for each; uni_pc leaves the schedule of the others alone."""
    prompt = select(sampling(example, "euler", threshold=0.9, initial_disabled_steps=1, uncond_zero_scale=0.9))
    guider = prompt[find(prompt, "AdaptiveGuider")]
    for number, name in enumerate(SAMPLERS, 1):
        own = guider["inputs"] | {"cfg_start_pct": number * 1e-6}  # no difference, but another node in ComfyUI's cache
        prompt[f"{name} guider"] = {"class_type": "AdaptiveGuider", "inputs": own}
        prompt = sampled(prompt, f"{name} used", sampler=name)
        prompt = sampled(prompt, f"{name} new", sampler=name, guider=f"{name} guider")
    outcome = run(server, prompt)
    differing = [
        name for name in SAMPLERS if not torch.equal(*(read(server, outcome, f"{name} {side}") for side in ("used", "new")))
    ]
    assert not differing
    assert len(outcome.of(REPORT)) == 2 * len(SAMPLERS)


def test_hooks_of_other_nodes_are_honoured(server: Server, example: Prompt, trained: Outcome) -> None:
    prompt = sampling(example, "euler")
    guider = prompt[find(prompt, "AdaptiveGuider")]
    prompt["by comfyui"] = cfg_guider(prompt)
    for name, settings in HOOKS.items():
        prompt[name] = {"class_type": name, "inputs": {"model": guider["inputs"]["model"], **settings}}
        for side in ("AdaptiveGuider", "CFGGuider"):
            made = guider if side == "AdaptiveGuider" else prompt["by comfyui"]
            prompt[f"{name} {side}"] = made | {"inputs": made["inputs"] | {"model": [name, 0]}}
            prompt = sampled(prompt, f"{name} by {side}", guider=f"{name} {side}")
    outcome = run(server, prompt)
    plain = read(server, outcome, "saved")
    for name in HOOKS:
        ours, theirs = (read(server, outcome, f"{name} by {side}") for side in ("AdaptiveGuider", "CFGGuider"))
        assert torch.equal(ours, theirs) and not torch.equal(ours, plain), name


def test_the_unconditional_prediction_is_made_where_cfg_is_on_and_nothing_is_changed_in_place() -> None:
    cases = run_in_comfyui("count_predictions.py", PACK_ROOT)
    assert {name: (case["conditional"], case["unconditional"]) for name, case in cases.items()} == {
        "off": (5, 5),
        "two steps disabled": (5, 3),
        "heun, two steps disabled": (9, 6),
        "all steps disabled": (13, 0),
        "ends at once": (5, 1),
    }
    for name, case in cases.items():
        assert case["told"] == case["conditional"] + case["unconditional"] and case["unchanged"], name


def test_the_page_is_told_what_was_done_in_each_step(server: Server, example: Prompt, trained: Outcome) -> None:
    prompt = sampling(example, "euler", threshold=0.0, initial_disabled_steps=2)
    (report,) = run(server, prompt).of(REPORT)
    assert report["node_id"] == find(prompt, "AdaptiveGuider")
    first, *steps = report["text"].splitlines()
    assert first == "CFG on in 1 of 5 evaluations, 4 of 10 predictions saved (40%)"
    assert [re.sub(r"step +(\d) +sigma \d\.\d+  ", r"\1 ", line).split("  similarity")[0] for line in steps] == [
        "1 no CFG yet",
        "2 no CFG yet",
        "3 CFG",
        "4 CFG has ended",
        "5 CFG has ended",
    ]
    assert "similarity 0." in steps[2] or "similarity 1." in steps[2]


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
