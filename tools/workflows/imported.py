"""The example workflow that trains what a SimpleTuner configuration says."""

from .graph import Group, Workflow
from .parts import node, tell, test_group

WIRES = {  # input of TrainLoRA -> what the import gives for it
    "model": "FLUX_TRAIN_MODEL",
    "dataset": "TRAIN_DATASET",
    "lora": "LORA_CONFIG",
    "routes": "TREAD_ROUTES",
    "optimizer": "OPTIMIZER_CONFIG",
    "flow": "FLOW_CONFIG",
    "validation": "VALIDATION_CONFIG",
    "options": "TRAINING_OPTIONS",
    "publishing": "PUBLISHING_CONFIG",
    "max_train_steps": "steps",
    "training_seed": "seed",
}

IMPORT = Workflow(
    "Import from SimpleTuner",
    (
        (
            "Read me",
            "**Import SimpleTuner Config** reads a *config.json* with its *multidatabackend.json*, and gives **Train LoRA** "
            "everything that it takes. The report says what became of each option: taken, taken with another meaning, without "
            "effect here, or refused.\n\nHere it reads the configuration that ships with the pack; **base** *pico* takes the "
            "place of FLUX.1 dev, which it names.",
        ),
        (
            "For a configuration of your own",
            "Write its path into **config** and choose *as configured* in **base**. The base is looked for where SimpleTuner "
            "left it, and nothing is downloaded unless **allow_download** is on. Configuration and pictures have to lie in "
            "ComfyUI's folders, or in one that its owner allows; the message says how.",
        ),
    ),
    (
        Group(
            "1  Configuration",
            (
                (
                    node("import", "ImportSimpleTunerConfig", config="pico demo configuration", base="pico", across=420),
                    tell("report", "import.report", "What became of each option", 420),
                ),
            ),
        ),
        Group(
            "2  Train",
            (
                (
                    node(
                        "train",
                        "TrainLoRA",
                        {name: f"import.{output}" for name, output in WIRES.items()},
                        name="imported",
                        across=420,
                        picture=420,
                    ),
                ),
            ),
        ),
        test_group("3  Test", "imported", "carrot"),
    ),
)
