"""All targets by name. Those that need torch are imported when one of them is asked for."""

from .target import Target

OF_TENSORS = ("safetensors", "gguf")
OF_TEXTS = ("job", "captions", "control", "prompts", "tables", "workflow", "simpletuner", "run")
NAMES = (*OF_TENSORS, *OF_TEXTS)


def target_of(name: str) -> Target:
    if name in OF_TENSORS:
        from .weights import WEIGHTS

        return WEIGHTS[name]
    from .texts import TEXTS

    return TEXTS[name]
