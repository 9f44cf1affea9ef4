"""Widgets made from the fields of the job, and the names of our sockets.

A field of a spec states its default, range, choices and meaning once, in `trainer_core/job.py`; the widget and its tooltip
are derived here. Values come back through `read_spec`, so a node refuses a wrong value with the words of the command line.
"""

import math
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from comfy_api.latest import io
from pydantic.fields import FieldInfo

from ..trainer_core.job_file import parse_part
from ..trainer_core.specs.spec import Spec
from .seldom import SELDOM_TOUCHED

CATEGORY = "FLUX LoRA"
LARGEST_WIDGET_INT = 2**53 - 1  # the browser keeps numbers as doubles and would round a larger one

NEWER_OPTIONS = frozenset({"advanced"})

FluxTrainModel = io.Custom("FLUX_TRAIN_MODEL")
TrainDataset = io.Custom("TRAIN_DATASET")
DatasetOptions = io.Custom("DATASET_OPTIONS")
LoraConfigWire = io.Custom("LORA_CONFIG")
TreadRoutes = io.Custom("TREAD_ROUTES")
OptimizerConfigWire = io.Custom("OPTIMIZER_CONFIG")
FlowConfigWire = io.Custom("FLOW_CONFIG")
ValidationConfigWire = io.Custom("VALIDATION_CONFIG")
TrainingOptionsWire = io.Custom("TRAINING_OPTIONS")
PublishingConfigWire = io.Custom("PUBLISHING_CONFIG")
TrainRun = io.Custom("TRAIN_RUN")


def widgets(spec: type[Spec], *, leave_out: frozenset[str] = frozenset()) -> list[io.Input]:
    """One widget a field, in the order of the fields. Saved workflows rely on that order: append, never insert."""
    return [widget(spec, name) for name in spec.model_fields if name not in leave_out]


def widget(spec: type[Spec], field: str, name: str = "", **changes: Any) -> io.Input:
    """The widget of one field, under the field's name or another; `changes` override what the field says.

    It is an optional input, so that a prompt saved before it was added still runs: `completed` gives it its default.
    """
    info = spec.model_fields[field]
    kind = get_origin(info.annotation) or info.annotation
    make, options = _KINDS[kind](info)
    wanted = {"tooltip": info.description, "optional": True, "advanced": field in SELDOM_TOUCHED, **options, **changes}
    return make(name or field, **understood(make, wanted))


def choices(name: str, options: list[str], tooltip: str) -> io.Input:
    """A combo that belongs to no field; the first choice is its default."""
    return io.Combo.Input(name, options=options, default=options[0], optional=True, tooltip=tooltip)


def text(name: str, tooltip: str, default: str = "", **changes: Any) -> io.Input:
    """A text widget that belongs to no field."""
    return io.String.Input(name, default=default, optional=True, tooltip=tooltip, **changes)


def understood(make: Callable[..., io.Input], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that came after 0.3.64 and that this ComfyUI does not know yet."""
    known = signature(make).parameters
    return {name: value for name, value in options.items() if name in known or name not in NEWER_OPTIONS}


def completed(node: type[io.ComfyNode], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all widgets of a node: what ComfyUI hands over, and the default of each that the prompt leaves out."""
    shown = {one.id: one.as_dict() for one in node.SCHEMA.inputs}
    return {name: options["default"] for name, options in shown.items() if "default" in options} | dict(values)


def read_spec(part: str, value: Any, node: str) -> Any:
    """One part of a job, validated; `part` is its field in TrainJob. JobError in the words of `job.py`."""
    return parse_part(part, value, node)


Made = tuple[Callable[..., io.Input], Mapping[str, Any]]


def _combo(info: FieldInfo) -> Made:
    return io.Combo.Input, {"options": list(get_args(info.annotation)), "default": info.default}


def _boolean(info: FieldInfo) -> Made:
    return io.Boolean.Input, {"default": info.default}


def _int(info: FieldInfo) -> Made:
    low, high = _bounds(info)
    return io.Int.Input, {"default": info.default, "min": low, "max": min(high, LARGEST_WIDGET_INT)}


def _float(info: FieldInfo) -> Made:
    low, high = _bounds(info)
    return io.Float.Input, {"default": info.default, "min": low, "max": high, "step": _step(info.default)}


def _text(info: FieldInfo) -> Made:
    has_lines = bool(info.json_schema_extra) and "multiline" in info.json_schema_extra
    return io.String.Input, {
        "default": "" if info.is_required() else info.default,
        **({"multiline": True} if has_lines else {}),
    }


def _lines(info: FieldInfo) -> Made:
    return io.String.Input, {"default": "\n".join(map(str, info.default)), "multiline": True}


_KINDS: dict[Any, Callable[[FieldInfo], Made]] = {
    Literal: _combo,
    bool: _boolean,
    int: _int,
    float: _float,
    str: _text,
    tuple: _lines,
}


def _bounds(info: FieldInfo) -> tuple[Any, Any]:
    """The smallest and largest value. A bound that is itself not allowed is left to validation, which can say so."""
    lows = [limit.ge if isinstance(limit, Ge) else limit.gt for limit in info.metadata if isinstance(limit, Ge | Gt)]
    highs = [limit.le if isinstance(limit, Le) else limit.lt for limit in info.metadata if isinstance(limit, Le | Lt)]
    return lows[0], highs[0]


def _step(default: float) -> float:
    """Two digits finer than the default, which the arrows of the widget then change sensibly: 1e-6 for 1e-4."""
    return 10.0 ** (math.floor(math.log10(default)) - 2) if 0 < default < 1 else 0.01
