"""What the pages' commands other than flux-lora's are run as: the smallest size that still does the work.

The table goes by the command as a page has it. A row is run in the repository's root, which is `{root}`, or in a copy of it
where it writes there; `{out}` is an empty folder of its own. Parts joined by && are run one after the other.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from comfy_server import HOW_TO_GET_ONE, find_comfyui
from PIL import Image

from support import job_data, make_pictures
from tests.faults.disks import can_mount
from tools.pretrain_pico.catalogue import FONT_PATH
from tools.scenarios import MOMENTS

UV = os.environ.get("UV") or shutil.which("uv")


def always() -> str:
    return ""


def comfyui() -> str:
    return "" if find_comfyui() else HOW_TO_GET_ONE


def uv() -> str:
    return "" if UV else "needs uv: python -m pip install uv"


def page() -> str:
    has_browser = find_spec("playwright") and any(map(shutil.which, ("chromium", "google-chrome", "chromium-browser")))
    return comfyui() or ("" if has_browser else "needs playwright and a chromium")


def mounts() -> str:
    return "" if can_mount() else "small disks are mounted, which needs root on Linux"


def deepspeed() -> str:
    return "" if find_spec("deepspeed") else "accelerate's launcher wants the package deepspeed for its own configuration"


def emoji() -> str:
    has_both = find_spec("emoji") and FONT_PATH.is_file()
    return "" if has_both else f"needs uv sync --group pretrain and {FONT_PATH}"


def no_preparation(out: Path) -> None:
    """Nothing has to be there."""


def shots(out: Path) -> None:
    """What a browser saw of one template."""
    (out / "shots").mkdir()
    for moment in MOMENTS:
        Image.new("RGB", (1500, 1000), "grey").save(out / "shots" / f"Masked subject, {moment}.png")


def job(out: Path) -> None:
    """A job of two steps for two processes on the CPU."""
    data = job_data(make_pictures(out / "pictures"), training={"max_train_steps": 2})
    (out / "job.json").write_text(json.dumps(data), encoding="utf-8")


@dataclass(frozen=True)
class Short:
    """A command in its small size, and how it is seen that it did its work."""

    run: str
    says: str = ""  # a pattern in what it prints
    makes: str = ""  # a file that is new afterwards; * stands for anything
    remakes: bool = False  # writes into the repository: done in a copy of it
    is_quick: bool = False  # in the default suite
    codes: tuple[int, ...] = (0,)  # of the exit
    lacks: Callable[[], str] = always  # why it cannot be run here; "" where it can
    prepare: Callable[[Path], None] = no_preparation


FAULTS = "python -m tests.faults"
KEPT = r'"kept": true'
LAUNCHED = "--num_processes 4 -m trainer_core run job.json"
TWO = "--num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 "
TWO += "-m trainer_core run {out}/job.json --out {out}/runs --json"
TRAINED = r'"verified_keys": [1-9]'
PRETRAIN = "python -m tools.pretrain_pico"
PICO = " && ".join(
    f"{PRETRAIN}.{part}"
    for part in (
        "data --out {out}/data",
        "vae --data {out}/data --out {out}/vae --steps 2",
        "latents --data {out}/data --out {out}/latents",
        "transformer --data {out}/data --latents {out}/latents --out {out}/transformer --steps 2",
        "export --data {out}/data --vae {out}/vae --transformer {out}/transformer --out {out}/weights",
        "demo_pictures --data {out}/data --out {out}/demo",
        "subject --data {out}/data --out {out}/subject --steps 2 --judged 2",
        "evaluate --data {out}/data --sheet {out}/sheet.png --prompts 4",
    )
)
PEERS = "--recompute --diffusers-script FILE --diffusers-python PYTHON --simpletuner PYTHON --comfyui FOLDER"
CLONE = "git clone -q {root} {out}/clone"
NEW, PYTHON = "python -m venv {out}/env", "{out}/env/bin/python"

SHORT: dict[str, Short] = {
    # README, CONTRIBUTING
    "git clone <this repository>": Short(CLONE, makes="{out}/clone/README.md", is_quick=True),
    "python -m pip install -q uv": Short(
        f"{CLONE} && {NEW} && {PYTHON} -m pip install -q uv && "
        f"{PYTHON} -m uv --directory {{out}}/clone run flux-lora demo --print-job",
        says=r'"max_train_steps": 400',
    ),
    "pip install .": Short(
        f"{NEW} && {PYTHON} -m pip install -q --no-deps {{root}} && {PYTHON} -m pip show -f flux-lora-studio",
        says=r"trainer_core/pico/weights/transformer.safetensors",
        remakes=True,
    ),
    "uv sync --group pretrain": Short(
        f"{CLONE} && uv --directory {{out}}/clone sync --dry-run --group pretrain", says=r"\+ emoji==", lacks=uv
    ),
    "python -m uv build --wheel": Short(
        "uv build -q --wheel --out-dir {out} {root}",
        makes="{out}/flux_lora_studio-*-py3-none-any.whl",
        lacks=uv,
        remakes=True,
    ),
    "python -m tools.archive pack.zip": Short("python -m tools.archive {out}/pack.zip", makes="{out}/pack.zip", is_quick=True),
    "python -m tools.refresh": Short(
        "python -m tools.refresh", makes="{root}/locales/en/nodeDefs.json", lacks=comfyui, remakes=True
    ),
    "python -m tools.registry_pictures": Short(
        "python -m tools.registry_pictures", makes="{root}/docs/banner.png", remakes=True, is_quick=True
    ),
    "python -m tools.node_pictures": Short(
        "python -m tools.node_pictures", makes="{root}/web/docs/TrainLoRA.jpg", lacks=page, remakes=True
    ),
    "python -m tools.graph_picture": Short(
        "python -m tools.graph_picture", makes="{root}/docs/graph.jpg", lacks=page, remakes=True
    ),
    "FLUX_LORA_SLOW=1 FLUX_LORA_SHOTS=shots pytest -m browser tests/browser/test_templates.py": Short(
        "FLUX_LORA_SLOW=1 FLUX_LORA_SHOTS={out}/shots pytest -m browser tests/browser/test_templates.py -k Masked",
        says="1 passed",
        makes="{out}/shots/Masked subject, 4 pictures.png",
        lacks=page,
    ),
    "python -m tools.scenarios shots": Short(
        "python -m tools.scenarios {out}/shots",
        makes="{root}/docs/scenarios/Masked subject.jpg",
        remakes=True,
        is_quick=True,
        prepare=shots,
    ),
    # tests
    "pytest": Short("pytest --collect-only -q", says=r"\d+ tests collected"),
    'pytest -m "not comfy and not browser"': Short(
        'pytest --collect-only -q -m "not comfy and not browser"', says=r"\d+/\d+ tests collected"
    ),
    "pytest tests/test_maths.py": Short("pytest tests/test_maths.py", says=r"\d+ passed"),
    "pytest -m gpu": Short("pytest -m gpu tests/test_gpu.py", says=r"1 (passed|skipped)"),
    "pytest -m gpu tests/test_standby.py": Short("pytest -m gpu tests/test_standby.py", says=r"1 (passed|skipped)"),
    "pytest -s tests/test_web.py -k telling": Short("pytest -s tests/test_web.py -k telling", says="1 passed"),
    "FLUX_LORA_SLOW=1 pytest tests/test_docs.py": Short("FLUX_LORA_SLOW=1 pytest tests/test_docs.py", says=r"\d+ passed"),
    "FLUX_LORA_SLOW=1 pytest tests/test_doc_commands.py": Short(
        'FLUX_LORA_SLOW=1 pytest tests/test_doc_commands.py -k "does_its_work and archive"', says="1 passed"
    ),
    "FLUX_LORA_SLOW=1 pytest tests/comfy/test_first_step.py": Short(
        "FLUX_LORA_SLOW=1 pytest tests/comfy/test_first_step.py", says="1 (passed|skipped)", lacks=comfyui
    ),
    # benchmarks
    "python -m benchmarks.host_memory --precision P [--train 256] [--t5] --json": Short(
        "python -m benchmarks.host_memory --precision nf4-bnb --small --train 64 --json && "
        "python -m benchmarks.host_memory --precision int8-quanto --small --t5 --json",
        says=r'"train": \{"peak_anonymous_bytes"',
    ),
    "python -m benchmarks.gpu --json": Short("python -m benchmarks.gpu --json", says=r'"seconds_per_step": \d'),
    "python -m benchmarks.gpu --plan": Short("python -m benchmarks.gpu --plan", says=r"int8-quanto"),
    "python -m benchmarks.modulation --file FILE": Short(
        "python -m benchmarks.modulation --file {out}/random.safetensors --small", says="8 at once: .* ms a pass"
    ),
    "python -m benchmarks.adaptive_cfg": Short("python -m benchmarks.adaptive_cfg --steps 4", says=r"cfg 0\.8 .*saved"),
    "python -m benchmarks.step": Short("python -m benchmarks.step --pairs 2", says="ratio_to_bare"),
    "python -m benchmarks.room": Short("python -m benchmarks.room --model pico --pixels 0", says=r"products: 0\.\d"),
    "python -m benchmarks.data": Short("python -m benchmarks.data --files 20", says="second_index_seconds"),
    "python -m benchmarks.encoding --vae tiny": Short(
        "python -m benchmarks.encoding --vae tiny --rounds 1", says="of the bare loop"
    ),
    "python -m benchmarks.encoding --vae tiny --pictures 200 --pixels 256 --rounds 3": Short(
        "python -m benchmarks.encoding --vae tiny --pictures 2 --pixels 64 --rounds 1", says="of the bare loop"
    ),
    f"python -m benchmarks.peers {PEERS} --json": Short(
        "python -m benchmarks.peers --small --single 1 --rounds 1 --steps 3 --pictures 2 --pixels 64 --dtype no --json",
        says=r'"seconds_to_first_step": \d',
    ),
    "python -m benchmarks.equal_time --steps 200 --json": Short(
        "python -m benchmarks.equal_time --steps 10 --pixels 64 --json", says=r'"loss_after_equal_time": 0\.\d'
    ),
    "python -m benchmarks.growth --steps 15 --plot docs/growth.svg --json": Short(
        "python -m benchmarks.growth --only samples,rates --steps 1 --plot {out}/growth.svg --json",
        says="seconds_of_a_checkpoint",
        makes="{out}/growth.svg",
    ),
    "python -m benchmarks.loading": Short("python -m benchmarks.loading --steps 2", says="wait_share"),
    "python -m benchmarks.lora_tools --json": Short("python -m benchmarks.lora_tools --json", says="extract to rank 16"),
    "python -m benchmarks.scale --steps 50": Short("python -m benchmarks.scale --steps 2", says="largest difference"),
    "python -m benchmarks.scale --job everything --steps 10": Short(
        "python -m benchmarks.scale --job everything --steps 6", says="killed .*largest difference"
    ),
    # faults, spoilt files, versions
    f"{FAULTS} --kills 100 --json": Short(f"{FAULTS} --kills 1 --json", KEPT),
    f"{FAULTS} --comfy --kills 12 --json": Short(f"{FAULTS} --comfy --kills 1 --json", KEPT, lacks=comfyui),
    f"{FAULTS} disk --json": Short(f"{FAULTS} disk --disks 1 --seed 1 --json", KEPT, lacks=mounts),
    f"{FAULTS} disk --disks 12 --seed 1 --json": Short(f"{FAULTS} disk --disks 1 --seed 1 --json", KEPT, lacks=mounts),
    f"{FAULTS} bits --json": Short(f"{FAULTS} bits --places 1 --json", KEPT),
    f"{FAULTS} bits --places 1 --json": Short(f"{FAULTS} bits --places 1 --json", KEPT),
    f"{FAULTS} bits --places 20 --json": Short(f"{FAULTS} bits --places 1 --json", KEPT),
    f"{FAULTS} memory --json": Short(f"{FAULTS} memory --rounds 1 --json", KEPT),
    f"{FAULTS} memory --rounds 3 --json": Short(f"{FAULTS} memory --rounds 1 --json", KEPT),
    f"{FAULTS} soak --steps 20000 --json": Short(  # what it promises of step time wants an idle machine
        f"{FAULTS} soak --steps 2400 --json", r'"steps": 2400', codes=(0, 1)
    ),
    "python -m tests.fuzz workflow": Short(
        "python -m tests.fuzz workflow --minutes 0.05", r"workflow: \d+ files .* 0 findings"
    ),
    "python -m tests.fuzz run": Short("python -m tests.fuzz run --minutes 0.05", r"run: \d+ files .* 0 findings"),
    "python -m tests.fuzz gguf": Short("python -m tests.fuzz gguf --minutes 0.05", r"gguf: \d+ files .* 0 findings"),
    "python -m tests.fuzz all --minutes 30": Short("python -m tests.fuzz all --minutes 0.05", r"gguf: \d+ files .* 0 findings"),
    "python -m tools.versions harm": Short("python -m tools.versions harm", r"'ok': True", lacks=comfyui),
    "python -m tools.versions": Short("python -m tools.versions newest", r"'ok': True", lacks=comfyui),
    # several processes
    f"accelerate launch --multi_gpu {LAUNCHED}": Short(f"accelerate launch --multi_gpu {TWO}", TRAINED, prepare=job),
    f"accelerate launch --use_fsdp --fsdp_version 2 {LAUNCHED}": Short(
        f"accelerate launch --use_fsdp --fsdp_version 2 {TWO}", TRAINED, prepare=job
    ),
    f"accelerate launch --use_deepspeed --zero_stage 3 {LAUNCHED}": Short(
        f"accelerate launch --use_deepspeed --zero_stage 3 {TWO}", TRAINED, prepare=job, lacks=deepspeed
    ),
    # how pico was made: all of it, once
    **dict.fromkeys(
        (
            f"{PRETRAIN}.evaluate",
            f"{PRETRAIN}.subject",
            f"{PRETRAIN}.data --out WORK/data",
            f"{PRETRAIN}.vae --data WORK/data --out WORK/vae",
            f"{PRETRAIN}.latents --data WORK/data --out WORK/latents",
            f"{PRETRAIN}.transformer --data WORK/data --latents WORK/latents --out WORK/transformer",
            f"{PRETRAIN}.export --data WORK/data --vae WORK/vae --transformer WORK/transformer",
            f"{PRETRAIN}.demo_pictures --data WORK/data",
            f"{PRETRAIN}.subject --data WORK/data --out WORK/subject",
            f"{PRETRAIN}.evaluate --data WORK/data --sheet WORK/sheet.png",
        ),
        Short(PICO, says='"folder"', makes="{out}/sheet.png", lacks=emoji),
    ),
}

NOT_RUN = {  # why
    "cd <its folder>": "goes into the clone",
    "pytest …": "stands for the tests named beside it; test_docs.py holds their names to the tests, which are in this suite",
    "comfy node publish": "publishes",
    "hf auth login": "asks for a token, and the hub whose it is",
    "wandb login": "asks for a key of an account of its own",
    "wandb sync": "sends; test_trackers.py reads what it would send",
    "tensorboard --logdir": "serves a page until it is stopped; test_trackers.py reads the files that it shows",
    ".ci/run": "is what runs this suite",
}
