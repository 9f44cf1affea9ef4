"""What one of two processes does that train together; apart from the tests, so that a process imports little.

Also the adapters of those tests.
"""

from datetime import timedelta
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from test_tread import SEAM, build, draws, generators, inputs, run
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from trainer_core.adapter.build import add_adapter
from trainer_core.adapter.plan import plan_adapter
from trainer_core.flux.recompute import recompute_blocks
from trainer_core.flux.routing import TokenRouter
from trainer_core.flux.shard import share_out
from trainer_core.specs.adapter import LoraSpec

STEPS = 4
ADAPTERS = {
    "lora": LoraSpec(lora_rank=4, flux_lora_target="all+ffs"),
    "lokr": LoraSpec(lora_type="lokr", flux_lora_target="all+ffs"),
}


def add_started(model: FluxTransformer2DModel, kind: str) -> dict[str, Parameter]:
    """Put the adapter on, a little off its start; its parameters."""
    parameters = add_adapter(model, plan_adapter(model, ADAPTERS[kind]), seed=0)
    (random,) = generators(11)
    for parameter in parameters.values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
    return parameters


def trained(model: nn.Module, router: TokenRouter, parameters: dict[str, Parameter], samples: list[int]) -> list[dict]:
    """The gradients of each step, then the parameters, after a few steps on these samples, each with tokens of its own."""
    everything, found = inputs(), []
    data = {name: value if name.endswith("ids") else value[samples] for name, value in everything.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    for step in range(STEPS):
        with router.routed(draws(router.spans, *(10 * step + sample for sample in samples))):
            loss = run(model, data).square().mean()
        loss.backward()
        found.append({name: parameter.grad.clone() for name, parameter in parameters.items()})
        optimizer.step()
        optimizer.zero_grad()
    return [*found, {name: parameter.detach().clone() for name, parameter in parameters.items()}]


def ready() -> tuple[FluxTransformer2DModel, TokenRouter, dict[str, Parameter]]:
    model = build().train()
    parameters = add_started(model, "lora")
    recompute_blocks(model, 1)
    return model, TokenRouter(model, [SEAM]), parameters


def alone_and_shared_out(rank: int) -> dict:
    """What this process finds by itself, with a whole base and with one of which it keeps a part; the sizes of both."""
    found: dict = {}
    for kind in ("whole", "shared"):
        model, router, parameters = ready()
        if kind == "shared":
            share_out(model, parameters.values())
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        own = sum((part.to_local() if isinstance(part, DTensor) else part).numel() for part in frozen)
        found[kind] = {"size": own, "steps": trained(model, router, parameters, [rank])}
    return found


def process(rank: int, folder: Path) -> None:
    """One of the two: it trains on the sample of its own number and leaves what it found in the folder."""
    torch.distributed.init_process_group("gloo", (folder / "meeting").as_uri(), timedelta(seconds=90), world_size=2, rank=rank)
    model, router, parameters = ready()
    found = trained(DistributedDataParallel(model), router, parameters, [rank])
    torch.save(found, folder / f"{rank}.pt")
    torch.save(alone_and_shared_out(rank), folder / f"shared-{rank}.pt")
    torch.distributed.destroy_process_group()
