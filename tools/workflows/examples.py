"""The example workflows. Each shows one thing, runs on pico as it is, and needs only other files for FLUX.1."""

from .edit import EDIT
from .graph import Group, Workflow
from .imported import IMPORT
from .parts import (
    FOR_FLUX,
    TRAINED_ON_FLUX,
    adaptive,
    base,
    flow,
    look,
    lora,
    node,
    noise,
    optimizer,
    options,
    pictures,
    prompts,
    sampled,
    tell,
    test_group,
    train,
    validation,
)

FIRST = Workflow(
    "Train a LoRA and test it",
    (
        (
            "Read me",
            "Press **Run**. In two or three minutes on a laptop's processor the sixteen pictures on the left become a LoRA, and the "
            "right side pictures a subject that it never saw, in their style.\n\nNothing is downloaded: **pico** is a small FLUX "
            f"that ships with the pack. {FOR_FLUX}",
        ),
        (
            "Cancel is save",
            "Cancel saves the run; queue the same settings again and it goes on at the step it had. A finished run returns at "
            "once.\n\nThe LoRA is also in ComfyUI's list of LoRAs. Set **strength** to 0 to see the base without it.",
        ),
    ),
    (
        Group("1  Pictures and base", ((base(),), (pictures(), look("buckets", "pictures.preview", "Buckets")))),
        Group("2  How to train", ((lora(), optimizer()), (flow(), options()))),
        Group("3  Train", ((validation(), train("pico-demo", 400)),)),
        test_group("4  Test", "pico-demo", "automobile"),
    ),
)

SUBJECT = Workflow(
    "Subject with regularisation pictures",
    (
        (
            "Read me",
            "A LoRA of one subject wants to turn everything like it into that subject. Here it learns a blue *zorb fox*, and the "
            "second dataset, pictures with **is_regularisation_data**, holds it to what the base says of everything else: a plain "
            "*fox* stays orange.",
        ),
        (
            "For your own subject",
            "Ten to thirty pictures of it, a rare word for it in every caption, and a few hundred pictures of its kind as "
            f"regularisation, captioned plainly. {FOR_FLUX}",
        ),
    ),
    (
        Group(
            "1  Pictures and base",
            (
                (base(),),
                (pictures(folder="pico demo subject", repeats=4), look("buckets", "plain.preview", "Regularisation pictures")),
                (
                    pictures(
                        "plain",
                        {"previous_dataset": "pictures.TRAIN_DATASET"},
                        folder="pico plain pictures",
                        caption_strategy="filename",
                        is_regularisation_data=True,
                    ),
                ),
            ),
        ),
        Group("2  How to train", ((lora(), optimizer(learning_rate=1e-3)), (flow(), options()))),
        Group(
            "3  Train",
            (
                (
                    validation(validation_prompts="a picture of zorb fox\nfox\nbear\ncat face"),
                    train("zorb", 200, dataset="plain"),
                ),
            ),
        ),
        test_group("4  Test", "zorb", "a picture of zorb fox"),
    ),
)

STYLE = Workflow(
    "Style in two resolutions",
    (
        (
            "Read me",
            "**resolution** *48, 64* shows every picture in both sizes. A style learnt so does not hang on one size, and the small "
            "size takes half the time of a step. For FLUX.1 write *512, 1024*.",
        ),
        (
            "Choosing the checkpoint",
            "Pictures are made every 100 steps: a style often looks best before the last step. Each of them lies in the run's folder "
            f"with a LoRA of that step beside it. {FOR_FLUX}",
        ),
    ),
    (
        Group(
            "1  Pictures and base", ((base(),), (pictures(resolution="48, 64"), look("buckets", "pictures.preview", "Buckets")))
        ),
        Group("2  How to train", ((lora(), optimizer()), (flow(), options(checkpoint_step_interval=100)))),
        Group(
            "3  Train",
            (
                (
                    validation(validation_step_interval=100, validation_resolution="64x64, 96x64"),
                    train("two-sizes", 200),
                ),
            ),
        ),
        test_group("4  Test", "two-sizes", "bicycle"),
    ),
)

MASKED = Workflow(
    "Masked subject",
    (
        (
            "Read me",
            "The pictures are cut out. With **alpha_is_mask** only what is opaque is trained on, so the LoRA learns the fox and no "
            "white background. **mask_background_weight** 0.1 lets the rest count a little, which keeps it in order; "
            "**mask_normalise_area** lets a small subject count as much as a large one.",
        ),
        (
            "Masks of your own",
            "Put a folder of masks with the pictures' names into **mask_data_dir** (white is trained on), or connect **images** and "
            f"**masks** of the graph. The preview shows in red what is masked out. {FOR_FLUX}",
        ),
    ),
    (
        Group(
            "1  Pictures and base",
            (
                (base(),),
                (
                    pictures(
                        folder="pico demo subject", alpha_is_mask=True, mask_background_weight=0.1, mask_normalise_area=True
                    ),
                    look("buckets", "pictures.preview", "Masked pictures"),
                ),
            ),
        ),
        Group("2  How to train", ((lora(), optimizer(learning_rate=1e-3)), (flow(), options()))),
        Group("3  Train", ((validation(validation_prompts="a picture of zorb fox\nfox"), train("masked", 150)),)),
        test_group("4  Test", "masked", "a picture of zorb fox"),
    ),
)

TREAD = Workflow(
    "Faster steps with TREAD",
    (
        (
            "Read me",
            "A **TREAD Route** lets half of the image tokens skip the layers from 1 to the last but one in training, so a step "
            "computes less; in the pictures no token skips anything. **anneal_from** 0.9 trains the last tenth on all tokens.",
        ),
        (
            "For FLUX.1",
            "Start at layer 2 and end at -2; 0.3 to 0.5 keeps quality, 0.6 to 0.8 is for speed. It pays at 1024 px and above; the "
            f"loss is higher at first. {FOR_FLUX}",
        ),
    ),
    (
        Group("1  Pictures and base", ((base(),), (pictures(), look("buckets", "pictures.preview", "Buckets")))),
        Group(
            "2  How to train",
            (
                (
                    node("route", "TREADRoute", selection_ratio=0.5, start_layer_idx=1, end_layer_idx=-2, anneal_from=0.9),
                    lora(),
                ),
                (flow(), options()),
                (optimizer(),),
            ),
        ),
        Group("3  Train", ((validation(), train("tread", 200, routes="route")),)),
        test_group("4  Test", "tread", "butterfly"),
    ),
)

SMALL = Workflow(
    "Small card, low memory",
    (
        (
            "Read me",
            "Everything that saves memory: a base in NF4 and T5 in int8 (**card** *10 GB* sets both), gradient checkpointing, batch "
            "size 1 with accumulation, AdamW in 8 bits, rank 8. **Training Plan** says before the start what each phase will need.",
        ),
        (
            "NF4 is touchy",
            "Keep to an AdamW and **max_grad_norm** 0.01; Lion makes it collapse. If it still does not fit: resolution 512, then "
            f"**blocks_to_swap**, then rank 4. {FOR_FLUX}",
        ),
    ),
    (
        Group(
            "1  Pictures and base",
            ((base(card="10 GB"), tell("preset", "model.report", "What the preset sets", 90)), (pictures(),)),
        ),
        Group(
            "2  How to train",
            (
                (lora(lora_rank=8, flux_lora_target="all"), optimizer(optimizer="bnb-adamw8bit", max_grad_norm=0.01)),
                (flow(), options(train_batch_size=1, gradient_accumulation_steps=4, gradient_checkpointing=True)),
            ),
        ),
        Group(
            "3  Does it fit?",
            (
                (
                    node(
                        "plan",
                        "TrainingPlan",
                        {
                            "model": "model",
                            "dataset": "pictures",
                            "lora": "lora",
                            "optimizer": "optimizer",
                            "flow": "flow",
                            "validation": "validation",
                            "options": "options",
                        },
                    ),
                    tell("told", "plan.report", "The plan", 240),
                    look("chart", "plan.chart", "The plan as a chart", 260),
                ),
            ),
        ),
        Group("4  Train", ((validation(validation_prompts="house\nkey\nlemon\nturtle"), train("small-card", 60)),)),
        test_group("5  Test", "small-card", "house"),
    ),
)

GUIDANCE = Workflow(
    "Guidance 1 and guidance 3.5",
    (
        (
            "Read me",
            "Two LoRAs, alike but for **flux_guidance_value**. Above, the usual 1: it keeps the distillation of FLUX.1 dev, and its "
            "pictures are sampled plainly, at dev's usual guidance. Below, 3.5: it trains the CFG objective back in, so its pictures "
            "want real CFG with a negative prompt.",
        ),
        (
            "Adaptive Guider",
            "Real CFG costs two passes a step. **Adaptive Guider** leaves it out in the first steps and ends it once it no longer "
            f"matters; the server's log says how many passes that saved. {TRAINED_ON_FLUX}, and latents of 1024 x 1024.",
        ),
    ),
    (
        Group("1  Pictures and base", ((base(),), (pictures(), look("buckets", "pictures.preview", "Buckets")))),
        Group("2  How to train", ((lora(), optimizer()), (options(), validation()))),
        Group(
            "3  Guidance 1",
            (
                (flow(flux_guidance_value=1.0), train("guidance-1", 200)),
                (
                    *prompts("crown", guidance=2.5)[:2],
                    prompts("crown", guidance=2.5)[3],
                    node("guider", "BasicGuider", {"model": "flux.MODEL", "conditioning": "guided"}),
                    *noise(),
                ),
                sampled("guidance-1", title="Guidance 1, plain"),
            ),
        ),
        Group(
            "4  Guidance 3.5",
            (
                (flow("flow 2", flux_guidance_value=3.5), train("guidance-3.5", 200, "train 2", flow="flow 2")),
                (
                    *prompts("crown", end=" 2", run="train 2.TRAIN_RUN", guidance=3.5),
                    adaptive(" 2", cfg=3.0, threshold=0.96, initial_disabled_steps=2),
                ),
                noise(" 2"),
                sampled("guidance-3.5", " 2", "Guidance 3.5, adaptive CFG"),
            ),
        ),
    ),
)

COMPARE = Workflow(
    "Compare checkpoints",
    (
        (
            "Read me",
            "Four pictures are set aside (**num_held_out**) and measured every 50 steps (**eval_steps_interval**). **Compare "
            "Checkpoints** then pictures the same prompts, with the same noise, by the LoRA of each kept checkpoint, beside the base "
            "and with the held-out loss of each: where it rises again, earlier is better.",
        ),
        (
            "Take the winner",
            "Write a name into **save_as** and the winner is copied into the LoRA folder. **strengths** *0.7, 1.0* shows whether it was "
            f"trained too far. {FOR_FLUX}",
        ),
    ),
    (
        Group("1  Pictures and base", ((base(),), (pictures(), look("buckets", "pictures.preview", "Buckets")))),
        Group(
            "2  How to train",
            ((lora(), optimizer()), (flow(), options(checkpoint_step_interval=50, checkpoints_total_limit=4))),
        ),
        Group("3  Train", ((validation(num_held_out=4, eval_steps_interval=50), train("compared", 200)),)),
        Group(
            "4  Compare",
            (
                (
                    node("compare", "CompareCheckpoints", {"run": "train.TRAIN_RUN"}, across=420),
                    node("grid", "PreviewImage", {"images": "compare.grid"}, title="The grid", across=420, picture=700),
                    node(
                        "scores", "PreviewAny", {"source": "compare.report"}, title="What was measured", across=420, picture=260
                    ),
                ),
            ),
        ),
    ),
)

RESUME = Workflow(
    "Resume and train on",
    (
        (
            "Read me",
            "Press **Run**, then **Cancel** in the middle: the run is saved. Press **Run** again and it goes on at the step it had, with "
            "the same bytes in the end as without the break. It also does after a crash, from its last checkpoint.",
        ),
        (
            "Train on",
            "Raise **max_train_steps** to 250 and press **Run**: with **lr_scheduler** *constant_with_warmup* the course of the learning "
            "rate does not hang on the length, so training simply goes on. **checkpoint** *latest* below pictures a stopped run, too. "
            f"{FOR_FLUX}",
        ),
    ),
    (
        Group("1  Pictures and base", ((base(),), (pictures(), look("buckets", "pictures.preview", "Buckets")))),
        Group(
            "2  How to train",
            (
                (lora(), optimizer(learning_rate=1e-3, lr_scheduler="constant_with_warmup", lr_end=0.0)),
                (flow(), options(checkpoint_step_interval=50)),
            ),
        ),
        Group("3  Train", ((validation(), train("resumed", 150)),)),
        test_group("4  Test", "resumed", "snowman", checkpoint="latest"),
    ),
)

EXAMPLES = (FIRST, SUBJECT, STYLE, MASKED, TREAD, SMALL, GUIDANCE, COMPARE, RESUME, EDIT, IMPORT)
