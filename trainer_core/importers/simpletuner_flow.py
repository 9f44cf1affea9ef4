"""What becomes of SimpleTuner's options about noise levels, guidance, loss and TREAD."""

import json
from typing import Any

from .simpletuner_draft import EMPTY, IDLE, OTHERWISE, REFUSED, TAKEN, Draft, Row, Unfit, by, ignore, otherwise, refuse, take
from .simpletuner_files import parse_json, read_json

DENSITIES = (  # field -> whether the original prefers it to those behind it
    "flow_custom_timesteps",
    "flow_use_uniform_schedule",
    "flow_use_beta_schedule",
    "flux_fast_schedule",
)
UNSAID_SHIFT = 3.0
MASK_TEXT = (
    "flow.flux_attention_masked_training: padding is really hidden; there, words merely count a little more than padding "
    "(t5_mask_mode additive does that)"
)
ROUTE_KEYS = ("selection_ratio", "start_layer_idx", "end_layer_idx")


def numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers, as JSON or as text."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else value.replace(",", " ").split()
    try:
        return tuple(float(number) for number in (value if isinstance(value, list | tuple) else [value]))
    except (TypeError, ValueError):
        raise Unfit("is no list of numbers") from None


def _custom_sigmas(draft: Draft, option: str, value: Any) -> None:
    if value in EMPTY or value == []:
        return draft.note(IDLE, option, "is empty")
    sigmas = numbers(value)
    if max(sigmas) > 1:
        sigmas = tuple(sigma / 1000 for sigma in sigmas)
    draft.put("flow.flow_custom_timesteps", sigmas)
    draft.note(TAKEN, option, f"flow.flow_custom_timesteps {', '.join(f'{sigma:g}' for sigma in sigmas)}")


def _timesteps_mode(draft: Draft, option: str, value: Any) -> None:
    if "robin" in str(value):
        return draft.note(OTHERWISE, option, "each sample takes one of flow_custom_timesteps at random")
    draft.note(TAKEN, option, "each sample takes one of flow_custom_timesteps at random")


def _masked(draft: Draft, option: str, value: Any) -> None:
    draft.put("flow.flux_attention_masked_training", value)
    draft.note(
        *((OTHERWISE, option, MASK_TEXT) if draft.get("flow.flux_attention_masked_training") else (TAKEN, option, "off"))
    )


def _tread(draft: Draft, option: str, value: Any) -> None:
    """Routes from a dict, from JSON as text, or from a file of it."""
    config = value
    if isinstance(value, str):
        is_json = value.lstrip().startswith("{")
        config = parse_json(value, option) if is_json else read_json(draft.place.find(value))
    routes = config.get("routes") if isinstance(config, dict) else None
    if not routes:
        raise Unfit('has no routes; write {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}]}')
    for route in routes:
        unknown = [name for name in route if name not in ROUTE_KEYS]
        if unknown:
            draft.note(IDLE, f"{option}: {', '.join(unknown)}", "is not known here")
        draft.routes.append({name: route[name] for name in ROUTE_KEYS if name in route})
    text = "routes: works with masks and hidden padding here, and routes that overlap or do not end are an error"
    draft.note(OTHERWISE, option, text)


def _guidance_mode(draft: Draft, option: str, value: Any) -> None:
    draft.put("flow.flux_guidance_mode", str(value).strip().lower())
    draft.note(TAKEN, option, "flow.flux_guidance_mode")


FLOW: dict[str, Row] = {
    "flow_schedule_shift": take("flow.flow_schedule_shift"),
    "flow_schedule_auto_shift": take("flow.flow_schedule_auto_shift"),
    "flow_sigmoid_scale": take("flow.flow_sigmoid_scale"),
    "flow_use_uniform_schedule": take("flow.flow_use_uniform_schedule"),
    "flow_use_beta_schedule": take("flow.flow_use_beta_schedule"),
    "flow_beta_schedule_alpha": take("flow.flow_beta_schedule_alpha"),
    "flow_beta_schedule_beta": take("flow.flow_beta_schedule_beta"),
    "flow_custom_timesteps": by(_custom_sigmas),
    "flow_timesteps_mode": by(_timesteps_mode),
    "flow_cubic_schedule_weights": refuse("there is no such density; choose one of the others"),
    "flux_fast_schedule": take("flow.flux_fast_schedule"),
    "flux_guidance_mode": by(_guidance_mode),
    "flux_guidance_value": take("flow.flux_guidance_value"),
    "flux_guidance_min": take("flow.flux_guidance_min"),
    "flux_guidance_max": take("flow.flux_guidance_max"),
    "flux_attention_masked_training": by(_masked),
    "loss_type": take("flow.loss_type"),
    "huber_schedule": otherwise("flow.huber_schedule", "follows the noise level; there it comes out as a constant"),
    "huber_c": take("flow.huber_c"),
    "input_perturbation": take("flow.input_perturbation"),
    "input_perturbation_steps": take("flow.input_perturbation_steps"),
    "caption_dropout_probability": take("flow.caption_dropout_probability"),
    "noise_offset": ignore("nor has it one there, with FLUX"),
    "snr_gamma": ignore("nor has it one there, with FLUX"),
    "masked_loss_probability": ignore("a mask counts each time"),
    "tread_config": by(_tread),
}


def settle_flow(draft: Draft) -> None:
    """One density, one shift, and what the flavours force."""
    flow = draft.parts["flow"]
    on = [name for name in DENSITIES if flow.get(name)]
    for name in on[1:]:
        flow.drop(name)
        draft.note(IDLE, name, f"{on[0]} goes before it, as in the original")
    if flow.get("flow_schedule_auto_shift") and flow.get("flow_schedule_shift"):
        flow.drop("flow_schedule_shift")
        draft.note(IDLE, "flow_schedule_shift", "flow_schedule_auto_shift goes before it, as in the original")
    is_given = draft.given("flow_schedule_shift") or flow.get("flow_schedule_auto_shift")
    if not is_given and not (flow.get("flow_custom_timesteps") or flow.get("flux_fast_schedule")):
        flow.put("flow_schedule_shift", UNSAID_SHIFT)
        text = "not given: 3, as the original does, whose guide says that it does not shift; 0 in the job is no shift"
        draft.note(OTHERWISE, "flow_schedule_shift", text)
    if flow.get("flux_guidance_min") > flow.get("flux_guidance_max"):
        flow.drop("flux_guidance_min")
        flow.drop("flux_guidance_max")
        draft.note(REFUSED, "flux_guidance_min", "is above flux_guidance_max; exchange them")
    _settle_flavour(draft)


def _settle_flavour(draft: Draft) -> None:
    """fluxbooru and libreflux: the original changes these settings without a word."""
    flavour, flow = draft.get("base.model_flavour"), draft.parts["flow"]
    if flavour == "libreflux" and not flow.get("flux_attention_masked_training"):
        flow.put("flux_attention_masked_training", True)
        draft.note(OTHERWISE, "flux_attention_masked_training", "on: libreflux was trained so, and the original forces it")
    if flavour == "fluxbooru":
        if flow.get("flux_attention_masked_training"):
            flow.drop("flux_attention_masked_training")
            draft.note(OTHERWISE, "flux_attention_masked_training", "off: fluxbooru was trained so, and the original forces it")
        if flow.get("flux_guidance_value") != 3.5:
            flow.put("flux_guidance_value", 3.5)
            draft.note(OTHERWISE, "flux_guidance_value", "3.5: fluxbooru was trained so, and the original forces it")
