"""The demo's job: a style, learnt from 16 pictures on the built-in base in about a minute on two CPU cores."""

from . import pico
from .job import (
    BaseModelSpec,
    DatasetSpec,
    FlowSpec,
    LoraSpec,
    OptimizerSpec,
    TrainingSpec,
    TrainJob,
    ValidationSpec,
)

STEPS = 150


def demo_job() -> TrainJob:
    """Trains on the pictures that ship with the pack and pictures subjects that are not among them."""
    unseen = sorted(pico.DEMO_UNSEEN_DIR.glob("*.txt"))[:8]
    return TrainJob(
        name="demo",
        base=BaseModelSpec(model_flavour="pico"),
        datasets=(DatasetSpec(id="two-tone emoji", instance_data_dir=str(pico.DEMO_PICTURES_DIR)),),
        lora=LoraSpec(lora_rank=16, flux_lora_target="all+ffs"),
        optimizer=OptimizerSpec(learning_rate=1e-3, lr_warmup_steps=10),
        flow=FlowSpec(flux_guidance_value=3.0),
        validation=ValidationSpec(validation_prompts=tuple(path.read_text("utf-8").strip() for path in unseen)),
        training=TrainingSpec(max_train_steps=STEPS, train_batch_size=4, gradient_checkpointing=False),
    )
