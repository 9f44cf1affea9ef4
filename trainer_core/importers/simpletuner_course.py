"""What becomes of SimpleTuner's options about optimiser, learning rate, length, batch and saving."""

import re
from typing import Any, NamedTuple

from .simpletuner_draft import (
    EMPTY,
    IDLE,
    MISFITS,
    OTHERWISE,
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
from .simpletuner_model import later


class Named(NamedTuple):
    """An optimiser of SimpleTuner's: ours, the arguments that make it the same, and what is different, if anything."""

    ours: str
    config: dict[str, str] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)
    text: str = ""


_STATES_32 = "there is none with 32-bit states that are paged; 8 bits are taken"
_STATES_8 = "torchao's states are not there; bitsandbytes' 8-bit ones are taken"
OPTIMIZERS: dict[str, Named] = {
    "adamw_bf16": Named("adamw_bf16", text="the adapter itself stays float32, so no step is lost to rounding"),
    "optimi-adamw": Named("optimi-adamw"),
    "optimi-adam": Named("optimi-adamw", {"weight_decay": "0"}),
    "optimi-stableadamw": Named("optimi-stableadamw"),
    "optimi-lion": Named("optimi-lion"),
    "torch-adamw": Named("adamw"),
    "torch-adam": Named("adamw", {"weight_decay": "0"}),
    "bnb-adamw": Named("adamw", {"eps": "1e-6"}),
    "bnb-adam": Named("adamw", {"weight_decay": "0"}),
    "bnb-adam8bit": Named("bnb-adamw8bit", {"weight_decay": "0"}),
    "bnb-adamw8bit": Named("bnb-adamw8bit"),
    "bnb-adamw-paged": Named("bnb-adamw8bit-paged", text=_STATES_32),
    "bnb-adamw8bit-paged": Named("bnb-adamw8bit-paged"),
    "bnb-lion": Named("optimi-lion"),
    "bnb-lion8bit": Named("bnb-lion8bit"),
    "bnb-lion-paged": Named("bnb-lion8bit-paged", text=_STATES_32),
    "bnb-lion8bit-paged": Named("bnb-lion8bit-paged"),
    "bnb-ademamix": Named("bnb-ademamix8bit", text="8-bit states are taken"),
    "bnb-ademamix8bit": Named("bnb-ademamix8bit"),
    "bnb-ademamix-paged": Named("bnb-ademamix8bit", text=_STATES_32.replace("that are paged", "")),
    "bnb-ademamix8bit-paged": Named("bnb-ademamix8bit", text="states that are not paged are taken"),
    "ao-adamw8bit": Named("bnb-adamw8bit", text=_STATES_8),
    "ao-adamw4bit": Named("bnb-adamw8bit", text=_STATES_8),
    "ao-adamfp8": Named("bnb-adamw8bit", text=_STATES_8),
    "ao-adamwfp8": Named("bnb-adamw8bit", text=_STATES_8),
    "adamw8bit": Named("bnb-adamw8bit"),
    "prodigy": Named("prodigy"),
    "adamw_schedulefree": Named("adamw_schedulefree"),
    "adamw_schedulefree+aggressive": Named("adamw_schedulefree", {"weight_decay": "1e-3", "eps": "1e-6"}),
    "adamw_schedulefree+no_kahan": Named("adamw_schedulefree", {"weight_decay": "1e-3", "eps": "1e-6"}),
}
AVERAGING = ("prodigy", "adamw_schedulefree")
OSCILLATING = {
    "cosine": "falls once, from the warm-up to the last step; there it swings for ever, with the warm-up as half its period",
    "sine": "rises lr_num_cycles times over the run; there it swings with the warm-up as half its period",
    "cosine_with_restarts": "starts lr_num_cycles times over the run; there it never leaves its first value",
}
RANDOM_SEED = 42
NO_LIMIT = 1e6  # as max_grad_norm


def _optimizer(draft: Draft, option: str, value: Any) -> None:
    name = str(value).strip().lower()
    if name not in OPTIMIZERS:
        raise Unfit(f"is not here; choose one of {', '.join(dict.fromkeys(named.ours for named in OPTIMIZERS.values()))}")
    named = OPTIMIZERS[name]
    draft.put("optimizer.optimizer", named.ours)
    if named.ours == name:
        return draft.note(
            OTHERWISE if named.text else TAKEN, option, "optimizer.optimizer" + (named.text and ": " + named.text)
        )
    same = ", ".join(f"{key}={number}" for key, number in named.config.items())
    draft.note(
        OTHERWISE, option, f"optimizer.optimizer: {named.ours}{' with ' + same if same else ''}. {named.text}".rstrip(". ")
    )


def _scheduler(draft: Draft, option: str, value: Any) -> None:
    name = str(value).strip().lower()
    draft.put("optimizer.lr_scheduler", name)
    path = "optimizer.lr_scheduler"
    draft.note(
        OTHERWISE if name in OSCILLATING else TAKEN, option, f"{path}: {OSCILLATING[name]}" if name in OSCILLATING else path
    )


def _grad_norm(draft: Draft, option: str, value: Any) -> None:
    if float(value) == 0:
        draft.put("optimizer.max_grad_norm", NO_LIMIT)
        return draft.note(TAKEN, option, f"optimizer.max_grad_norm {NO_LIMIT:g}, which is no limit")
    draft.put("optimizer.max_grad_norm", value)
    if draft.given("grad_clip_method"):
        return draft.note(TAKEN, option, "optimizer.max_grad_norm")
    text = "the length of the whole gradient; there it cuts each number by itself unless grad_clip_method says norm"
    draft.note(OTHERWISE, option, f"optimizer.max_grad_norm: {text}")


def _seed(draft: Draft, option: str, value: Any) -> None:
    if int(value) < 0:
        draft.put("training.seed", RANDOM_SEED)
        return draft.note(
            OTHERWISE, option, f"training.seed {RANDOM_SEED}: there another one each time; runs here can be repeated"
        )
    draft.put("training.seed", value)
    if int(value) == 0:
        return draft.note(OTHERWISE, option, "training.seed 0: there the clock's; runs here can be repeated")
    draft.note(TAKEN, option, "training.seed")


def _interval(draft: Draft, option: str, value: Any) -> None:
    draft.put("training.gradient_checkpointing_interval", value or 1)
    text = "every n-th block is recomputed; newer versions of the original recompute whole groups of so many blocks"
    draft.note(OTHERWISE, option, f"training.gradient_checkpointing_interval: {text}")


def _backend(draft: Draft, option: str, value: Any) -> None:
    if "unsloth" in str(value):
        draft.put("training.enable_activation_offloading", True)
        return draft.note(TAKEN, option, "training.enable_activation_offloading")
    draft.note(IDLE, option, "blocks are recomputed whole")


def _dynamo(draft: Draft, option: str, value: Any) -> None:
    if str(value).strip().lower() in ("", "no", "none"):
        return draft.note(IDLE, option, "off, as by default here")
    draft.put("training.torch_compile", "auto")
    draft.note(OTHERWISE, option, "training.torch_compile auto: the blocks are compiled where the run is long enough to gain")


def _report_to(draft: Draft, option: str, value: Any) -> None:
    """One tracker or several, with commas; those that are not here are named."""
    named = {name.strip().lower() for name in str(value).split(",")} - {"none", "simpletuner"}
    known = named & {"tensorboard", "wandb", "all"}
    if not known:
        return draft.note(IDLE, option, "events.jsonl in the run folder has every figure, always")
    draft.put("training.report_to", min(known) if len(known) == 1 else "all")
    others = f"; there is no {', '.join(sorted(named - known))}" if named - known else ""
    text = "training.report_to: kept in the run folder; nothing is sent unless the environment says WANDB_MODE=online"
    draft.note(OTHERWISE, option, text + others)


def _resume(draft: Draft, option: str, value: Any) -> None:
    text = (
        "the same job goes on where it stopped, by itself; another job is another run, and `flux-lora resume --job` changes one"
    )
    draft.note(OTHERWISE, option, text)


COURSE: dict[str, Row] = {
    "optimizer": by(_optimizer),
    "optimizer_config": by(later),
    "optimizer_beta1": take("optimizer.adam_beta1"),
    "optimizer_beta2": take("optimizer.adam_beta2"),
    "adam_beta1": take("optimizer.adam_beta1"),
    "adam_beta2": take("optimizer.adam_beta2"),
    "adam_weight_decay": take("optimizer.adam_weight_decay"),
    "adam_epsilon": by(later),
    "prodigy_steps": by(later),
    "learning_rate": by(later),
    "lr_scheduler": by(_scheduler),
    "lr_warmup_steps": take("optimizer.lr_warmup_steps"),
    "lr_end": by(later),
    "lr_power": take("optimizer.lr_power"),
    "lr_num_cycles": take("optimizer.lr_num_cycles"),
    "lr_scale": refuse("the learning rate is taken as it is written; multiply it yourself"),
    "lr_scale_sqrt": ignore("the learning rate is taken as it is written"),
    "max_grad_norm": by(_grad_norm),
    "grad_clip_method": take("optimizer.grad_clip_method"),
    "gradient_precision": ignore("gradients of the adapter are float32"),
    "set_grads_to_none": ignore("they are, always"),
    "use_ema": take("training.use_ema"),
    "ema_decay": take("training.ema_decay"),
    "ema_update_interval": take("training.ema_update_interval"),
    "ema_validation": take("training.ema_validation"),
    "ema_device": ignore("the running average is where the adapter is"),
    "ema_cpu_only": ignore("the running average is where the adapter is"),
    "ema_warmup_steps": ignore("the first steps of the running average follow faster by themselves"),
    "max_train_steps": by(later),
    "num_train_epochs": by(later),
    "train_batch_size": take("training.train_batch_size"),
    "gradient_accumulation_steps": otherwise(
        "training.gradient_accumulation_steps", "a bucket may hold less than a step needs"
    ),
    "gradient_checkpointing": take("training.gradient_checkpointing"),
    "gradient_checkpointing_interval": by(_interval),
    "gradient_checkpointing_segment_stride": ignore("blocks are recomputed one by one"),
    "gradient_checkpointing_backend": by(_backend),
    "dynamo_backend": by(_dynamo),
    "training_dynamo_backend": by(_dynamo),
    "gradient_checkpointing_offload_attention": ignore("enable_activation_offloading does it for whole blocks"),
    "checkpoint_step_interval": take("training.checkpoint_step_interval"),
    "checkpoint_epoch_interval": ignore("checkpoints are made by steps; set checkpoint_step_interval in the job"),
    "checkpoints_total_limit": take("training.checkpoints_total_limit"),
    "report_to": by(_report_to),
    "tracker_project_name": take("training.tracker_project_name"),
    "seed": by(_seed),
    "resume_from_checkpoint": by(_resume),
    "data_backend_sampling": take("training.data_backend_sampling"),
}


def settle_course(draft: Draft) -> None:
    """What several of these options decide together."""
    _settle_length(draft)
    _settle_optimizer(draft)
    _settle_rate(draft)
    if is_on(draft.options.get("use_ema")) and not draft.given("ema_validation"):
        draft.put("training.ema_validation", "comparison")
        draft.note(TAKEN, "ema_validation", "not given: comparison, as in the original")
    training = draft.parts["training"]
    if draft.get("base.blocks_to_swap") and not training.get("gradient_checkpointing"):
        training.drop("gradient_checkpointing")
        draft.note(OTHERWISE, "gradient_checkpointing", "on: a block can only leave the card if it is recomputed")
    if draft.get("base.blocks_to_swap") and training.get("gradient_checkpointing_interval") > 1:
        training.drop("gradient_checkpointing_interval")
        draft.note(IDLE, "gradient_checkpointing_interval", "every block is recomputed, so that it can leave the card")


def _settle_length(draft: Draft) -> None:
    """Steps or epochs; the original refuses both, though its own default is one epoch."""
    steps, epochs = (_number(draft, name) for name in ("max_train_steps", "num_train_epochs"))
    if steps > 0:
        draft.put("training.max_train_steps", steps)
        draft.note(TAKEN, "max_train_steps", "training.max_train_steps")
        if "num_train_epochs" in draft.options:
            draft.note(IDLE, "num_train_epochs", "max_train_steps says how long")
        return
    draft.put("training.max_train_steps", 0)
    draft.put("training.num_train_epochs", epochs if epochs > 0 else 1)
    if "max_train_steps" in draft.options:
        draft.note(IDLE, "max_train_steps", "is 0: num_train_epochs says how long")
    text = "training.num_train_epochs"
    draft.note(TAKEN, "num_train_epochs", text if epochs > 0 else "not given: 1, as in the original")


def _number(draft: Draft, option: str) -> int:
    value = draft.options.get(option)
    if value in EMPTY:
        return 0
    try:
        return int(float(value))
    except MISFITS:
        raise Unfit(f"{option} is {value!r}; it is a whole number") from None


def _settle_optimizer(draft: Draft) -> None:
    """optimizer_config and what else goes there; what the optimiser does not know is dropped, as in the original."""
    from ..optimizers import OPTIMIZERS as CHOICES  # imports torch

    spec = draft.parts["optimizer"]
    name = spec.get("optimizer")
    named = OPTIMIZERS.get(str(draft.options.get("optimizer") or "").strip().lower(), Named(name))
    known, config = CHOICES[name].options, dict(named.config)
    given = {key.strip(): word.strip() for key, word in _pairs(str(draft.options.get("optimizer_config") or ""))}
    for key, part in (("beta1", "adam_beta1"), ("beta2", "adam_beta2")):
        if key in given:
            spec.put(part, given.pop(key))
    dropped = [key for key in given if key not in known]
    config |= {key: word for key, word in given.items() if key in known}
    if "optimizer_config" in draft.options:
        draft.note(TAKEN, "optimizer_config", "optimizer.optimizer_config")
    if dropped:
        draft.note(IDLE, f"optimizer_config: {', '.join(dropped)}", f"{name} takes no such argument")
    for option, key in (("adam_epsilon", "eps"), ("prodigy_steps", "prodigy_steps")):
        if draft.given(option) and key in known:
            config[key] = str(draft.options[option])
            draft.note(TAKEN, option, f"optimizer.optimizer_config {key}")
        elif option in draft.options:
            draft.note(IDLE, option, f"{name} takes no {key}")
    if spec.get("adam_weight_decay") >= 0:
        config.pop("weight_decay", None)
    spec.put("optimizer_config", ",".join(f"{key}={word}" for key, word in config.items()))
    if name == "optimi-stableadamw" or name == "prodigy":
        draft.note(OTHERWISE, "max_grad_norm", f"clips here with {name} too; there it does not")


def _pairs(text: str) -> list[list[str]]:
    return [part.split("=", 1) for part in re.split(r",\s*(?=\w+\s*=)", text) if "=" in part]


def _settle_rate(draft: Draft) -> None:
    """The learning rate, and a course that goes with the optimiser."""
    spec = draft.parts["optimizer"]
    name = spec.get("optimizer")
    if name == "prodigy":
        spec.put("learning_rate", 1.0)
        draft.note(OTHERWISE, "learning_rate", "optimizer.learning_rate 1: prodigy finds its own rate, and this would scale it")
    elif draft.given("learning_rate"):
        spec.put("learning_rate", draft.options["learning_rate"])
        draft.note(TAKEN, "learning_rate", "optimizer.learning_rate")
    if name in AVERAGING and spec.get("lr_scheduler") not in ("constant", "constant_with_warmup"):
        spec.drop("lr_scheduler")
        draft.note(IDLE, "lr_scheduler", f"{name} brings its own course")
    if draft.given("lr_end"):
        spec.put("lr_end", draft.options["lr_end"])
        if spec.get("lr_end") > spec.get("learning_rate"):
            spec.drop("lr_end")
            return draft.note(IDLE, "lr_end", "is above learning_rate; the course ends at 0")
        draft.note(TAKEN, "lr_end", "optimizer.lr_end")
    if spec.get("lr_scheduler") == "polynomial" and not draft.given("lr_power"):
        spec.put("lr_power", 0.8)
        draft.note(TAKEN, "lr_power", "not given: 0.8, as in the original")
