"""What could compiling save here at the most? python -m benchmarks.room [--model M] [--pixels P] [--dtype D] [--json]

Eager steps of the bare loop of `benchmarks.step` under torch's profiler. Matrix products and attention come from the same
libraries whether a step is compiled or not; all else a compiler may fuse, down to nothing at the very best. So `products` is
the share of a step that stays, and no compiled step takes less of an eager one.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from .step import WARM_UP, Bench, Case, machine

PRODUCTS = {
    "aten::addmm",
    "aten::mm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
}
STEPS = 3
LONGEST = 8


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """The share of the products in some eager steps, and which operations take the rest."""
    bench = Bench(case, folder)
    bench.bare(WARM_UP)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        bench.bare(STEPS)
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    whole = sum(times.values())
    rest = sorted((name for name in times if name not in PRODUCTS), key=times.__getitem__, reverse=True)
    return {
        "case": vars(case),
        "seconds": round(whole / STEPS / 1e6, 3),
        "products": round(sum(times.get(name, 0) for name in PRODUCTS) / whole, 4),
        "rest": {name: round(times[name] / whole, 4) for name in rest[:LONGEST]},
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("pico", "100m", "full"), default="full")
    parser.add_argument("--pixels", type=int, default=512, help="edge of the pictures; 0: the demo's")
    parser.add_argument("--dtype", choices=("no", "bf16"), default="no", help="no is float32")
    parser.add_argument("--json", action="store_true")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Case(**arguments), Path(folder))
    print(json.dumps(report) if as_json else "\n".join(f"{name}: {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
