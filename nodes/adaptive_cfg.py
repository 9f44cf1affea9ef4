"""Adaptive guidance in ComfyUI: CFG ends when the conditional and the unconditional prediction agree (`guidance.py`).

Samplers evaluate the model one to three times a step, at sigmas that need not be in the schedule and may rise again within a
step, so neither calls nor sigmas are counted: the lowest sigma seen in this run tells how far it has come. All state begins
anew with each run, hence the same graph gives the same picture however often it is queued. With every rule off this is
ComfyUI's CFGGuider, bit for bit. Other nodes' hooks on the prediction stay: this one only adds its own to a copy.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.samplers
from torch import Tensor

from ..trainer_core.guidance import against_flat, similarity
from .guidance_report import ENDED, NOT_BEGUN, ON, Evaluation, summary

TOLERANCE = 1e-4  # relative; samplers recompute sigmas, so they are not compared exactly

Report = Callable[[Sequence[Evaluation]], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """When CFG is on. The defaults: always."""

    threshold: float = 1.0
    initial_disabled_steps: int = 0
    cfg_start_pct: float = 0.0
    uncond_zero_scale: float = 0.0


class AdaptiveCFGGuider(comfy.samplers.CFGGuider):
    """A CFGGuider that leaves the unconditional prediction out where the rules say so; `report` is told after each run."""

    def __init__(self, model_patcher: comfy.model_patcher.ModelPatcher, rules: Rules, report: Report = lambda seen: None):
        super().__init__(model_patcher)
        self._rules = rules
        self._report = report
        self._begin()

    def sample(self, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One run; everything that is remembered within it is forgotten before it.

        The sampler gets a schedule of its own: uni_pc writes into it, and the one that is wired is ComfyUI's cached output.
        """
        self._begin()
        samples = super().sample(noise, latent_image, sampler, sigmas.clone(), *args, **kwargs)
        log.info("AdaptiveGuider: %s", summary(self._evaluations))
        self._report(self._evaluations)
        return samples

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None) -> Tensor:
        """The guided prediction at these sigmas: with CFG, or the conditional prediction alone."""
        sigma, sigmas = float(timestep.max()), model_options["transformer_options"]["sample_sigmas"]
        self._lowest_sigma = min(self._lowest_sigma, sigma)
        cfg = ENDED if self._ended else ON if self._has_begun(sigmas) else NOT_BEGUN
        options = comfy.model_patcher.create_model_options_clone(model_options)
        if cfg == ENDED and self._rules.uncond_zero_scale > 0:
            comfy.model_patcher.set_model_options_post_cfg_function(options, self._against_zero)

        def look(args: dict[str, Any]) -> list[Tensor]:
            """See what was predicted, and end CFG once every picture of the batch has both predictions alike."""
            pair, alike = args["conds"][1] is not None, None
            if pair and cfg == ON and self._rules.threshold < 1:
                alike = similarity(*args["conds_out"][:2])
                self._ended = alike >= self._rules.threshold
            self._evaluations.append(Evaluation(self._step(sigmas), sigma, cfg, 1 + pair, alike))
            return args["conds_out"]

        comfy.model_patcher.set_model_options_pre_cfg_function(options, look)
        positive, negative = self.conds.get("positive"), self.conds.get("negative")
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            negative,
            positive,
            self.cfg if cfg == ON else 1.0,
            model_options=options,
            seed=seed,
        )

    def _begin(self) -> None:
        self._lowest_sigma = float("inf")
        self._ended = False
        self._evaluations: list[Evaluation] = []

    def _step(self, sigmas: Tensor) -> int:
        """The step of the schedule that this run has come to, from 1 on."""
        return max(1, int((sigmas[:-1] * (1 + TOLERANCE) >= self._lowest_sigma).sum()))

    def _has_begun(self, sigmas: Tensor) -> bool:
        """Whether the steps and the share of the range that go without CFG are over. `sigmas` is the run's schedule."""
        num_disabled = min(self._rules.initial_disabled_steps, len(sigmas) - 1)
        if num_disabled == 0 and self._rules.cfg_start_pct <= 0:
            return True
        sampling = self.model_patcher.get_model_object("model_sampling")
        start = min(float(sigmas[num_disabled]), float(sampling.percent_to_sigma(self._rules.cfg_start_pct)))
        return self._lowest_sigma <= start * (1 + TOLERANCE)

    def _against_zero(self, args: dict[str, Any]) -> Tensor:
        """Once CFG has ended: as if against an empty prediction."""
        return against_flat(args["denoised"], self._rules.uncond_zero_scale)
