"""ComfyUI's view of the trainer: one small file a concern, and here the list of all nodes.

Nothing here trains or holds a model. The nodes gather a `TrainJob` from widgets, give it to a child process, and show what
comes back; what travels on the wires are plain values (specs, paths, ComfyUI's own types), so ComfyUI's caching is right.

    widgets.py         widgets from the job's fields, and the sockets' names
    specs.py           LoRAConfig, TREADRoute, OptimizerConfig, FlowScheduleConfig, ValidationConfig, TrainingOptions,
                       PublishingConfig
    base.py            LoadFluxForTraining
    dataset.py         DatasetBucket            dataset_options.py  DatasetCrop, DatasetCaptions, DatasetSampling
    train.py           TrainLoRA                child.py          the child process that trains and checks
    standby.py         the one that waits       process.py        how each is started, environment.py  with which variables
    plan.py            TrainingPlan
    compare.py         CompareCheckpoints       importer.py       ImportSimpleTunerConfig
    lora_tools.py      ConvertLoRA, ResizeLoRA, MergeLoRAs, ExtractLoRA
    trained.py         LoadTrainedFlux          comfy_flux.py     pico and FLUX files as ComfyUI's MODEL, CLIP and VAE
    guider.py          AdaptiveGuider           adaptive_cfg.py   its arithmetic
    routes.py          what the page asks: runs, events, pictures, commands; http_requests.py says which requests are refused
    attached.py        which runs are being trained now, told to the page
    permissions.py     what a workflow may read besides ComfyUI's own folders
    pictures.py        pictures between files and IMAGE; folders.py  where everything is kept

Importing this package costs milliseconds: torch and comfy.* are imported inside the functions that need them, and only
comfy_flux.py and adaptive_cfg.py, themselves imported late, name them at the top.
"""

from comfy_api.latest import ComfyExtension, io

from ..trainer_core.half_written import clear_unfinished
from .base import LoadFluxForTraining
from .compare import CompareCheckpoints
from .dataset import DatasetBucket
from .dataset_options import DatasetCaptions, DatasetCrop, DatasetSampling
from .folders import datasets_dir, input_dir, loras_dir
from .guider import AdaptiveGuider
from .importer import ImportSimpleTunerConfig
from .lora_tools import ConvertLoRA, ExtractLoRA, MergeLoRAs, ResizeLoRA
from .plan import TrainingPlan
from .routes import add_routes
from .specs import (
    FlowScheduleConfig,
    LoRAConfig,
    OptimizerConfig,
    PublishingConfig,
    TrainingOptions,
    TREADRoute,
    ValidationConfig,
)
from .train import TrainLoRA
from .trained import LoadTrainedFlux

NODES: list[type[io.ComfyNode]] = [
    LoadFluxForTraining,
    DatasetBucket,
    LoRAConfig,
    TREADRoute,
    OptimizerConfig,
    FlowScheduleConfig,
    ValidationConfig,
    TrainingOptions,
    TrainLoRA,
    LoadTrainedFlux,
    AdaptiveGuider,
    TrainingPlan,
    DatasetCrop,
    DatasetCaptions,
    DatasetSampling,
    CompareCheckpoints,
    ImportSimpleTunerConfig,
    ConvertLoRA,
    ResizeLoRA,
    MergeLoRAs,
    ExtractLoRA,
    PublishingConfig,
]


add_routes()


class FluxLoraExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    for folder in (input_dir(), loras_dir(), datasets_dir()):
        clear_unfinished(folder)  # of a server that died
    return FluxLoraExtension()
