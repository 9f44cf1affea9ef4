"""The example workflow that edits a picture: pairs, a LoRA of them, and ReferenceLatent, as with FLUX.1 Kontext."""

from .graph import Group, Workflow
from .parts import (
    adaptive,
    base,
    flow,
    look,
    lora,
    noise,
    optimizer,
    options,
    pictures,
    prompts,
    sampled,
    started,
    train,
    validation,
)

EDIT = Workflow(
    "Edit a picture, as kontext does",
    (
        (
            "Read me",
            "Pairs: each two-tone picture has under its name, in **reference_data_dir**, the plain one that it starts from; "
            "all have one caption, the instruction. Four pairs are set aside (**num_held_out**), and the run's pictures start "
            "from their plain ones: edits of what was never trained on.\n\nOn the right the base draws a picture, and the LoRA "
            "edits it through **ReferenceLatent**. Pico learns the two tones here and keeps little of what it starts from: it "
            "is small and never learned to edit; kontext has.",
        ),
        (
            "For FLUX.1 Kontext",
            "Choose *kontext* and its files in *Load FLUX for Training*, your two folders in *Dataset Bucket*, an instruction "
            "as caption (one for all, or a text file each), mixed_precision bf16, gradient_checkpointing on, learning rate "
            "1e-4, batch size 1, shift 0, guidance 1 in training, cfg 1 and guidance 2.5 in pictures. Instead of the picture "
            "that is drawn here take **Load Image**, **FluxKontextImageScale** and **VAE Encode**, and give its latent to "
            "both *Start from this*.",
        ),
    ),
    (
        Group(
            "1  Pairs and base",
            (
                (base(),),
                (
                    pictures(
                        folder="pico two-tone pictures",
                        reference_data_dir="pico plain pictures",
                        caption_strategy="instanceprompt",
                        instance_prompt="make it two-tone",
                    ),
                    look("buckets", "pictures.preview", "What is to come out"),
                ),
            ),
        ),
        Group("2  How to train", ((lora(), optimizer()), (flow(), options()))),
        Group("3  Train", ((validation(validation_prompts="", num_held_out=4, eval_steps_interval=100), train("edit", 150)),)),
        Group(
            "4  A picture to start from",
            (
                prompts("fox", end=" 0", strength=0.0),
                (adaptive(" 0"), *noise(" 0", batch=2)),
                sampled("plain", " 0", "By the base"),
            ),
        ),
        Group(
            "5  Edit it",
            (
                (*prompts("make it two-tone"), *started("sample 0.output")),
                (adaptive(asked=("from", "unfrom")), *noise(batch=2)),
                sampled("edit", title="By the LoRA, from the picture before"),
            ),
        ),
    ),
)
