"""What becomes of SimpleTuner's options about pictures made on the way, scores and the held-out loss."""

import json
import math
import re
from typing import Any

from ..specs.prompts import TOKEN
from .simpletuner_draft import EMPTY, IDLE, OTHERWISE, TAKEN, Draft, Row, Unfit, by, ignore, is_on, otherwise, take
from .simpletuner_files import read_json
from .simpletuner_model import later

MOST_MEGAPIXELS = 128  # a smaller number means megapixels there
NEEDS_CFG = ("fluxbooru", "libreflux")
FEWEST_STEPS = 28  # of these, forced by the original
USUAL_CLIP = "openai/clip-vit-large-patch14-336"
USUAL_INTERVAL = 100  # between two evaluations, where none is given
NO_SUBJECT = "the subject"


def sizes(value: Any) -> str:
    """'1024x768, 1.0' as our sizes: edges in pixels, multiples of 16."""
    parts = value if isinstance(value, list) else str(value).replace(" ", "").split(",")
    return ", ".join(_size(str(part).lower()) for part in parts)


def _size(text: str) -> str:
    try:
        edges = [float(edge) for edge in text.split("x")]
    except ValueError:
        raise Unfit(f"{text!r} is no size; write it as 1024x768") from None
    if len(edges) == 1 and edges[0] < MOST_MEGAPIXELS:
        edges = [math.sqrt(edges[0] * 1e6)]
    width, height = (max(16, round(edge / 16) * 16) for edge in (edges[0], edges[-1]))
    return f"{width}x{height}"


def _library(draft: Draft, option: str, value: Any) -> None:
    """The prompts by their nicknames, which become names of files."""
    if value in EMPTY:
        return draft.note(IDLE, option, "is empty")
    entries = value if isinstance(value, dict) else read_json(draft.place.find(str(value)))
    if not isinstance(entries, dict):
        raise Unfit('is no prompt library; it is {"nickname": "prompt", ...}')
    library: dict[str, str] = {}
    renamed = []
    for nickname, entry in entries.items():
        prompt = entry.get("prompt", "") if isinstance(entry, dict) else str(entry)
        name = _file_name(nickname, library)
        renamed += [f"{nickname} as {name}"] if name != nickname else []
        library[name] = prompt
        others = [key for key in entry if key != "prompt"] if isinstance(entry, dict) else []
        if others:
            draft.note(IDLE, f"{option}: {nickname}: {', '.join(others)}", "a prompt has only its text here")
    draft.put("validation.user_prompt_library", json.dumps(library, ensure_ascii=False))
    text = "validation.user_prompt_library"
    draft.note(TAKEN, option, f"{text}; {', '.join(renamed)}, to be names of files" if renamed else text)


def _file_name(nickname: str, taken: dict[str, str]) -> str:
    """The nickname as our libraries take it: letters, digits, blank, dot, dash, underscore, and no mere number."""
    name = re.sub(r"[^A-Za-z0-9 ._-]+", "_", nickname.replace(TOKEN, TOKEN.strip("<>"))).strip(" ._-")[:76]
    if not name or name.isdigit():
        name = f"prompt_{name}".rstrip("_")
    known = {entry.casefold() for entry in taken}
    numbered = [name, *(f"{name}_{number}" for number in range(2, len(known) + 3))]
    return next(candidate for candidate in numbered if candidate.casefold() not in known)


def _prompt(draft: Draft, option: str, value: Any) -> None:
    if value in EMPTY:
        return draft.note(IDLE, option, "is empty")
    draft.put("validation.validation_prompts", (str(value).strip(),))
    draft.note(TAKEN, option, "validation.validation_prompts")


def _evaluation(draft: Draft, option: str, value: Any) -> None:
    if str(value).strip().lower() != "clip":
        return draft.note(IDLE, option, "is off")
    model = str(draft.options.get("pretrained_evaluation_model_name_or_path") or USUAL_CLIP)
    draft.put("validation.evaluation_type", "clip")
    found = draft.place.find(model)
    draft.put("validation.pretrained_evaluation_model_name_or_path", str(found) if found.exists() else model)
    text = (
        f"validation.evaluation_type, by {model}: a cosine, each picture of each step; there some are left out or overwritten"
    )
    draft.note(OTHERWISE, option, text)


def _disable(draft: Draft, option: str, value: Any) -> None:
    draft.note(TAKEN if is_on(value) else IDLE, option, "validation.num_validation_images 0" if is_on(value) else "is off")


def _num_images(draft: Draft, option: str, value: Any) -> None:
    if not is_on(value):
        return draft.note(TAKEN, option, "validation.num_validation_images 0")
    draft.note(IDLE, option, "each prompt is pictured once")


PICTURES: dict[str, Row] = {
    "validation_prompt": by(_prompt),
    "user_prompt_library": by(_library),
    "validation_prompt_library": ignore("the original's own prompts are not here; give yours as user_prompt_library"),
    "validation_negative_prompt": take("validation.validation_negative_prompt"),
    "validation_resolution": take("validation.validation_resolution", "", sizes),
    "validation_num_inference_steps": take("validation.validation_num_inference_steps"),
    "validation_guidance": take("validation.validation_guidance"),
    "validation_guidance_real": otherwise(
        "validation.validation_guidance_real", "both passes of real CFG go through the model together where the memory does"
    ),
    "validation_guidance_rescale": ignore("nor has it one there, with FLUX"),
    "validation_guidance_skip_layers": ignore("nor has it one there, with FLUX"),
    "validation_no_cfg_until_timestep": take("validation.validation_no_cfg_until_timestep"),
    "validation_step_interval": take("validation.validation_step_interval"),
    "validation_epoch_interval": take("validation.validation_epoch_interval"),
    "validate_after_step": ignore("pictures are made from the start on"),
    "validate_after_epoch": ignore("pictures are made from the start on"),
    "validation_on_startup": ignore("the base's own pictures are always made first"),
    "validation_seed": take("validation.validation_seed"),
    "validation_seed_source": ignore("noise is drawn on the CPU"),
    "validation_randomize": ignore("pictures are always made with the same seed, to be compared"),
    "num_validation_images": by(_num_images),
    "validation_disable": by(_disable),
    "disable_benchmark": ignore("the base's own pictures are made once, and anew when prompts or settings change"),
    "validation_preview": ignore("pictures show when they are done"),
    "validation_preview_steps": ignore("pictures show when they are done"),
    "validation_torch_compile": ignore("there is no compilation"),
    "validation_using_datasets": ignore("pictures are made from prompts"),
    "validation_noise_scheduler": ignore("pictures are made as FLUX's own sampler makes them"),
    "validation_adapter_path": ignore("`flux-lora compare` sets LoRAs side by side"),
    "validation_adapter_config": ignore("`flux-lora compare` sets LoRAs side by side"),
    "validation_lycoris_strength": ignore("pictures are made at strength 1; `flux-lora compare` makes others"),
    "evaluation_type": by(_evaluation),
    "pretrained_evaluation_model_name_or_path": by(later),
    "eval_steps_interval": by(later),
    "eval_epoch_interval": ignore("the held-out loss is measured by steps; set eval_steps_interval"),
    "num_eval_images": take("validation.num_eval_images"),
    "eval_timesteps": otherwise(
        "validation.eval_timesteps", "evenly spread noise levels; there almost only high ones at 1024 px"
    ),
    "eval_dataset_pooling": ignore("each eval dataset is measured by itself"),
}


def settle_pictures(draft: Draft) -> None:
    """What several of these options decide together, and with the datasets and the flavour."""
    validation = draft.parts["validation"]
    is_off = is_on(draft.options.get("validation_disable")) or (
        "num_validation_images" in draft.options and not is_on(draft.options["num_validation_images"])
    )
    if is_off:
        for name in ("validation_prompts", "user_prompt_library"):
            validation.drop(name)
        validation.put("num_validation_images", 0)
    elif not (validation.get("validation_prompts") or validation.get("user_prompt_library")):
        draft.note(OTHERWISE, "validation_prompt", "not given: the dataset's first captions are pictured")
    _fill_token(draft)
    _settle_guidance(draft)
    _settle_evaluation(draft)
    if not draft.given("validation_seed"):
        validation.put("validation_seed", draft.get("training.seed"))
        draft.note(TAKEN, "validation_seed", "not given: as seed")
    if "pretrained_evaluation_model_name_or_path" in draft.options:
        text = "validation.pretrained_evaluation_model_name_or_path"
        is_used = validation.get("evaluation_type") == "clip"
        draft.note(
            *(TAKEN if is_used else IDLE,),
            "pretrained_evaluation_model_name_or_path",
            text if is_used else "without evaluation_type clip",
        )


def _fill_token(draft: Draft) -> None:
    """<token> in prompts: the guide tells its readers to write the subject's name there."""
    validation = draft.parts["validation"]
    prompts, library = validation.get("validation_prompts"), validation.get("user_prompt_library")
    if TOKEN not in library and not any(TOKEN in prompt for prompt in prompts):
        return
    subjects = [fields.get("instance_prompt") or fields.get("caption_prefix") for fields in draft.datasets]
    subject = next(filter(None, subjects), str(draft.options.get("instance_prompt") or "") or NO_SUBJECT)
    validation.put("validation_prompts", tuple(prompt.replace(TOKEN, subject) for prompt in prompts))
    validation.put("user_prompt_library", library.replace(TOKEN, json.dumps(subject, ensure_ascii=False)[1:-1]))
    draft.note(OTHERWISE, f"prompts with {TOKEN}", f"{subject!r} stands in its place; there it is taken as it is")


def _settle_guidance(draft: Draft) -> None:
    """Real CFG: on above 1, forced for what was de-distilled; what goes with it does nothing without."""
    validation, flavour = draft.parts["validation"], draft.get("base.model_flavour")
    real = validation.get("validation_guidance_real")
    if flavour in NEEDS_CFG and real <= 1:
        validation.drop("validation_guidance_real")
        draft.note(OTHERWISE, "validation_guidance_real", f"6: {flavour} needs real CFG, and the original forces it")
    if flavour in NEEDS_CFG and 0 < validation.get("validation_num_inference_steps") < FEWEST_STEPS:
        validation.put("validation_num_inference_steps", FEWEST_STEPS)
        draft.note(OTHERWISE, "validation_num_inference_steps", f"{FEWEST_STEPS}: {flavour} needs them")
    if real > 1 and not draft.given("validation_no_cfg_until_timestep"):
        validation.put("validation_no_cfg_until_timestep", 2)
        draft.note(TAKEN, "validation_no_cfg_until_timestep", "not given: 2, as in the original")
    if 0 <= real <= 1 or (real < 0 and flavour not in (*NEEDS_CFG, "pico")):
        for name in ("validation_negative_prompt", "validation_no_cfg_until_timestep"):
            if name in validation.values:
                validation.drop(name)
                draft.note(IDLE, name, "without validation_guidance_real above 1")


def _settle_evaluation(draft: Draft) -> None:
    """Eval datasets and the interval go together."""
    validation = draft.parts["validation"]
    has_datasets = any(fields.get("dataset_type") == "eval" for fields in draft.datasets)
    interval = draft.options.get("eval_steps_interval")
    if has_datasets and is_on(interval):
        validation.put("eval_steps_interval", interval)
        draft.note(
            OTHERWISE,
            "eval_steps_interval",
            "validation.eval_steps_interval: masks count here, and images are not drawn at random",
        )
    elif has_datasets:
        validation.put("eval_steps_interval", USUAL_INTERVAL)
        draft.note(OTHERWISE, "eval_steps_interval", f"not given: {USUAL_INTERVAL}, for there are eval datasets")
    elif "eval_steps_interval" in draft.options:
        draft.note(IDLE, "eval_steps_interval", "there is no eval dataset")
