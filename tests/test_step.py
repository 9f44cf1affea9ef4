"""What a step says of itself."""

import torch

from support import add_lora, encoded, job_data
from trainer_core.data.batches import BatchPlan
from trainer_core.data.order import Mix
from trainer_core.flux.load import load_transformer
from trainer_core.flux.routing import TokenRouter
from trainer_core.job_file import parse_job
from trainer_core.objective import Objective
from trainer_core.optim import make_clip
from trainer_core.optimizers import make_optimizer
from trainer_core.setup import prepare
from trainer_core.step import Update, train_step


def test_a_step_records_every_sample_and_what_each_route_left_out(tmp_path, pictures, cache):
    routes = [
        {"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": 2, "anneal_from": 0.5},
        {"selection_ratio": 0.25, "start_layer_idx": 3, "end_layer_idx": 4},
    ]
    setup = prepare(parse_job(job_data(pictures, routes=routes)))
    transformer = load_transformer(setup.files.transformer, torch.float32, setup.device)
    parameters = add_lora(transformer, setup.job.lora)
    mix = Mix(accumulation=2)
    plan = BatchPlan(setup.samples, encoded(setup.samples, cache), batch_size=2, caption_dropout=0, seed=0, mix=mix)
    objective, clip = Objective(setup.job.flow, torch.float32, 0), make_clip(setup.job.optimizer)
    optimizer, router = make_optimizer(setup.job.optimizer, parameters.values(), 0), TokenRouter(transformer, setup.spans)
    update = Update(optimizer, clip)
    first, last = (train_step(transformer, update, plan.portion(step), objective, router, (), step=step) for step in (2, 3))
    batches = [plan.batch(number) for number in (4, 5)]
    assert first.names == tuple(name for batch in batches for name in batch.names) and len(first.names) == 4
    drawn = [objective.draw(batch.latent_BCHW, 2, position).sigma_B for position, batch in zip((0, 2), batches, strict=True)]
    assert first.sigmas == tuple(torch.cat(drawn).tolist())
    assert abs(sum(first.losses) / 4 - first.loss) < 1e-6 and first.grad_norm > 0
    counts = [batch.num_tokens for batch in batches]
    assert first.tokens == sum(2 * count for count in counts)
    assert first.dropped == (sum(2 * round(count * 0.5) for count in counts), sum(2 * round(count * 0.25) for count in counts))
    assert last.dropped[0] == 0 < last.dropped[1], "the first route ends after half of the run's six steps"
