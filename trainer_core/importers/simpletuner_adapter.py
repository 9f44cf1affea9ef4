"""What becomes of SimpleTuner's options about the adapter, and of a LyCORIS configuration."""

import json
from typing import Any

from ..errors import JobError
from .simpletuner_draft import (
    EMPTY,
    IDLE,
    OTHERWISE,
    REFUSED,
    TAKEN,
    Draft,
    Row,
    Unfit,
    by,
    ignore,
    is_on,
    otherwise,
    refuse,
    take,
)
from .simpletuner_files import read_json
from .simpletuner_model import later

# what 'Attention' and 'FeedForward' hit in SimpleTuner's transformer; the single blocks' own feed-forward is not among them
CLASS_TARGETS = {
    "Attention": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    "FeedForward": ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
}
DEFAULT_LOKR = {
    "algo": "lokr",
    "multiplier": 1.0,
    "linear_dim": 10000,
    "linear_alpha": 1,
    "factor": 16,
    "apply_preset": {
        "target_module": ["Attention", "FeedForward"],
        "module_algo_map": {"Attention": {"factor": 16}, "FeedForward": {"factor": 8}},
    },
}
ALGOS = {"lora": "lora", "locon": "lora", "lokr": "lokr", "loha": "loha"}
WHOLE_DIM = 1024  # LyCORIS takes a LoKr of such a rank as a full matrix
LYCORIS_KEYS = ("algo", "multiplier", "linear_dim", "linear_alpha", "factor", "full_matrix", "apply_preset")


def _lora_type(draft: Draft, option: str, value: Any) -> None:
    kind = str(value).strip().lower()
    if kind not in ("standard", "lycoris"):
        raise Unfit("known are standard and lycoris")
    draft.note(TAKEN, option, "lora.lora_type" if kind == "standard" else "lora.lora_type, by lycoris_config")


def _lora_alpha(draft: Draft, option: str, value: Any) -> None:
    if value in EMPTY:
        return draft.note(IDLE, option, "is empty: alpha is as the rank")
    draft.put("lora.lora_alpha", value)
    draft.note(
        OTHERWISE, option, "lora.lora_alpha: the original's file leaves it out, so ComfyUI loads that too strong or weak"
    )


def _target(draft: Draft, option: str, value: Any) -> None:
    name = str(value).strip().lower()
    if name == "all+ffs+embedder":
        from ..adapter.targets import TARGET_SUFFIXES

        draft.put("lora.flux_lora_target", "custom")
        draft.put("lora.peft_lora_target_modules", (*TARGET_SUFFIXES["all+ffs"], "x_embedder"))
        return draft.note(TAKEN, option, "lora.peft_lora_target_modules")
    if name == "custom":
        raise Unfit("the original has no such target")
    draft.put("lora.flux_lora_target", name)
    text = "lora.flux_lora_target"
    if name == "all+ffs":
        return draft.note(OTHERWISE, option, f"{text}: ComfyUI reads such a file whole, whatever the guide says")
    draft.note(TAKEN, option, text)


def _target_modules(draft: Draft, option: str, value: Any) -> None:
    names = value
    if isinstance(value, str):
        names = json.loads(value) if value.lstrip().startswith("[") else read_json(draft.place.find(value))
    draft.put("lora.flux_lora_target", "custom")
    draft.put("lora.peft_lora_target_modules", tuple(names))
    draft.note(TAKEN, option, "lora.peft_lora_target_modules, which stands in for flux_lora_target")


def _dora(draft: Draft, option: str, value: Any) -> None:
    if not is_on(value):
        return draft.note(IDLE, option, "is off")
    if "quanto" in str(draft.options.get("base_model_precision")):
        return draft.note(IDLE, option, "the original switches it off on a base in quanto's formats")
    raise Unfit("DoRA is not trained here; take it out for a LoRA")


def _init_type(draft: Draft, option: str, value: Any) -> None:
    precision = str(draft.options.get("base_model_precision") or "no_change").lower()
    draft.put("lora.lora_init_type", str(value).strip().lower())
    if draft.get("lora.lora_init_type") == "loftq" and precision in ("no_change", "bf16"):
        draft.put("lora.lora_init_type", "default")
        text = "loftq makes good what quantisation takes, and this base is not quantised: the default start is taken"
        return draft.note(OTHERWISE, option, text)
    texts = {
        "loftq": "the original refuses it on a quantised base and dies; here it works with every format",
        "olora": "the file fits the original base; the original's fits only the base that it changed",
        "pissa": "the file fits the original base; the original's fits only the base that it changed",
    }
    kind = OTHERWISE if str(value) in texts else TAKEN
    draft.note(kind, option, f"lora.lora_init_type{': ' + texts[str(value)] if str(value) in texts else ''}")


def _init_lora(draft: Draft, option: str, value: Any) -> None:
    draft.put("lora.init_lora", str(draft.place.find(str(value))))
    draft.note(OTHERWISE, option, "lora.init_lora: steps are counted from 0 again, and keys that do not fit are an error")


ADAPTER: dict[str, Row] = {
    "lora_type": by(_lora_type),
    "lora_rank": take("lora.lora_rank"),
    "lora_alpha": by(_lora_alpha),
    "lora_dropout": take("lora.lora_dropout"),
    "flux_lora_target": by(_target),
    "peft_lora_target_modules": by(_target_modules),
    "lora_init_type": by(_init_type),
    "init_lora": by(_init_lora),
    "init_lora_step": ignore("steps are counted from 0"),
    "init_lokr_norm": ignore("a LoKr starts as no change at all"),
    "lora_format": otherwise("", "the file has diffusers' names and an alpha for each layer; ComfyUI reads all of it"),
    "use_dora": by(_dora),
    "peft_lora_mode": by(lambda draft, option, value: _standard_only(draft, option, value)),
    "slider_lora_target": refuse("sliders are not trained here; take it out"),
    "lycoris_config": by(later),
}


def _standard_only(draft: Draft, option: str, value: Any) -> None:
    if str(value).strip().lower() != "standard":
        raise Unfit("only standard LoRAs are trained here; set it to standard")
    draft.note(TAKEN, option, "the only one here")


def settle_adapter(draft: Draft) -> None:
    """A LyCORIS configuration, then what excludes each other among the adapter's options."""
    lora = draft.parts["lora"]
    if str(draft.options.get("lora_type") or "").strip().lower() == "lycoris":
        _settle_lycoris(draft)
    elif "lycoris_config" in draft.options:
        draft.note(IDLE, "lycoris_config", "is read with lora_type lycoris only")
    if lora.get("lora_type") != "lora":
        for name in ("lora_dropout", "lora_init_type"):
            if name in lora.values:
                lora.drop(name)
                draft.note(IDLE, name, f"is for LoRA; this is a {lora.get('lora_type')}")
    elif lora.get("init_lora") and lora.get("lora_init_type") != "default":
        lora.drop("lora_init_type")
        draft.note(IDLE, "lora_init_type", "init_lora says where the LoRA starts")


def _settle_lycoris(draft: Draft) -> None:
    config, option = DEFAULT_LOKR, "lycoris_config"
    if draft.given(option):
        config = draft.options[option]
        config = config if isinstance(config, dict) else read_json(draft.place.find(str(config)))
    if not isinstance(config, dict):
        raise JobError("lycoris_config is no set of settings; it is {'algo': 'lokr', ...}")
    algo = str(config.get("algo", "lora")).lower()
    if algo not in ALGOS:
        return draft.note(REFUSED, option, f"algo {algo} is not trained here; choose lokr, loha or lora")
    given = " as the original's own" if not draft.given(option) else ""
    try:
        draft.put("lora.lora_type", ALGOS[algo])
        _lycoris_size(draft, config, algo)
        _lycoris_targets(draft, config, algo)
    except Unfit as error:
        return draft.note(REFUSED, option, str(error))
    for name in ("lora_rank", "lora_alpha", "flux_lora_target", "peft_lora_target_modules"):
        if name in draft.options:
            draft.note(IDLE, name, "with lora_type lycoris, lycoris_config counts")
    draft.note(TAKEN, option, f"{ALGOS[algo]}{given}: {_adapter_in_words(draft)}")
    unused = [name for name in config if name not in LYCORIS_KEYS]
    if unused:
        draft.note(IDLE, f"{option}: {', '.join(unused)}", "is not known here")


def _lycoris_size(draft: Draft, config: dict[str, Any], algo: str) -> None:
    lora = draft.parts["lora"]
    for name in ("lora_rank", "lora_alpha"):
        lora.drop(name)
    if float(config.get("multiplier", 1)) != 1:
        raise Unfit(
            f"multiplier {config['multiplier']} is not taken; set it to 1, and choose the strength where you load the file"
        )
    dim = int(config.get("linear_dim") or 0)
    is_whole = algo == "lokr" and (bool(config.get("full_matrix")) or dim >= WHOLE_DIM or not dim)
    if algo == "lokr":
        lora.put("lokr_full_matrix", is_whole)
        lora.put("lokr_factor", config.get("factor", 16))
        lora.put("lokr_factor_feed_forward", config.get("factor", 16))
    if not is_whole:
        lora.put("lora_rank", dim or 16)
        lora.put("lora_alpha", float(config.get("linear_alpha") or 0))


def _lycoris_targets(draft: Draft, config: dict[str, Any], algo: str) -> None:
    lora, preset = draft.parts["lora"], config.get("apply_preset") or {}
    classes = preset.get("target_module") or list(CLASS_TARGETS)
    unknown = [name for name in classes if name not in CLASS_TARGETS]
    if unknown:
        raise Unfit(
            f"apply_preset targets {', '.join(unknown)}; known are {', '.join(CLASS_TARGETS)}, or name layers in the job"
        )
    if classes == ["Attention"]:
        lora.put("flux_lora_target", "all")
        lora.drop("peft_lora_target_modules")
    else:
        lora.put("flux_lora_target", "custom")
        lora.put("peft_lora_target_modules", tuple(name for kind in classes for name in CLASS_TARGETS[kind]))
    for kind, field in (("Attention", "lokr_factor"), ("FeedForward", "lokr_factor_feed_forward")):
        own = (preset.get("module_algo_map") or {}).get(kind, {})
        if algo == "lokr" and "factor" in own:
            lora.put(field, own["factor"])
        others = [name for name in own if name not in ("factor", "algo")]
        if others or own.get("algo", algo) != algo:
            text = f"{', '.join(others) or 'algo'} of its own is not taken; the adapter is of one kind and size"
            draft.note(IDLE, f"lycoris_config: module_algo_map.{kind}", text)


def _adapter_in_words(draft: Draft) -> str:
    values = draft.parts["lora"].values
    return ", ".join(
        f"{name} {value}" for name, value in values.items() if name not in ("lora_type", "peft_lora_target_modules")
    )
