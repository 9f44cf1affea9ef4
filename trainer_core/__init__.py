"""FLUX.1 adapter training without ComfyUI: a job in, a LoRA file and a run folder out.

Read in this order: `job.py` (what can be asked), `train.py` (the pipeline, a line a stage), `step.py` (one optimisation
step on one screen), `flow.py` (the maths). Nothing here imports ComfyUI. `job.py`, `events.py`, `run_dir.py`, `errors.py`
and `flux/flavours.py` import neither torch nor anything heavy: they are the contract that `nodes/` shares with the child
process.
"""

__version__ = "0.1.0"
