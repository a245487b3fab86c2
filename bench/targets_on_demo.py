"""Train the demo's task with adapters on different modules, and write what each learns.

python bench/targets_on_demo.py

Every run is that of `lorafit demo` but for `target_modules`: the same tiny Phi, data, steps and
seed. Results go to bench/results/targets_on_demo.json; docs/PHI2-README.md shows them.
"""

import json
import sys
import tempfile
from pathlib import Path

from lorafit.config.layers import Given, Layer, resolve_layers
from lorafit.config.resolve import Resolved
from lorafit.demo.pretrain import ensure_demo_model, single_threaded
from lorafit.demo.recipe import demo_settings
from lorafit.demo.run import examine
from lorafit.hardware.detect import detect_device
from lorafit.model.libraries import prepare_libraries

RESULTS = Path(__file__).parent / "results" / "targets_on_demo.json"
CHOICES: dict[str, tuple[str, ...]] = {
    "q_proj,v_proj": ("q_proj", "v_proj"),
    "q_proj,k_proj,v_proj,dense": ("q_proj", "k_proj", "v_proj", "dense"),
    "fc1,fc2": ("fc1", "fc2"),
    "all six": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
}


def resolve(model: Path, output_dir: Path, targets: tuple[str, ...]) -> Resolved:
    values = {**demo_settings(model), "output_dir": str(output_dir), "target_modules": targets}
    given = {name: Given(value, "bench/targets_on_demo.py") for name, value in values.items()}
    return resolve_layers([Layer("bench", "file", given)])


def measure(model: Path, targets: tuple[str, ...]) -> dict[str, object]:
    from lorafit.training.planning.plan import plan_run
    from lorafit.training.run import run_training

    with tempfile.TemporaryDirectory() as folder:
        resolved = resolve(model, Path(folder) / "run", targets)
        plan = plan_run(resolved, detect_device("cpu"))
        result = run_training(plan)
        after = examine(resolved, result.adapter, lambda *_: None)
    return {
        "trainable_parameters": plan.model.num_trainable_parameters,
        "steps": result.results["steps"],
        "final_loss": result.results["final_loss"],
        "validation_loss": result.results["validation_loss"],
        "accuracy": after.report.accuracy,
        "macro_f1": after.report.macro_f1,
        "problems": len(after.answers),
    }


def main() -> None:
    prepare_libraries()
    model = ensure_demo_model()
    found: dict[str, object] = {}
    with single_threaded():
        for name, targets in CHOICES.items():
            found[name] = measure(model, targets)
            sys.stderr.write(f"{name}: {found[name]}\n")
            document = {"schema_version": 1, "rank": 16, "runs": found}
            RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
