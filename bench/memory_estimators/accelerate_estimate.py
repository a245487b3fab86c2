"""Ask `accelerate estimate-memory` about every measured run."""

import argparse
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from memory_estimators.runs import Figures, Run, answer


def _estimate(run: Run) -> Figures:
    return _figures_of(run.model_folder, "float16" if run.quantization == "none" else "int4")


@cache
def _figures_of(model_folder: Path, dtype: str) -> Figures:
    from accelerate.commands import estimate

    # The command asks the hub which library a model is for before it reads the configuration; that
    # one question is answered here, the rest is its own code on a local folder.
    estimate.verify_on_hub = lambda repo, token=None: SimpleNamespace(
        library_name="transformers", config={}
    )
    arguments = argparse.Namespace(
        model_name=str(model_folder),
        library_name="transformers",
        trust_remote_code=False,
        dtypes=[dtype],
    )
    ((_, _, total_size, training),) = estimate.gather_data(arguments)
    # It marks what it has no formula for with -1 and prints that as "N/A".
    adam = max(training.values())
    return {"load": round(total_size), "training with Adam": None if adam < 0 else round(adam)}


if __name__ == "__main__":
    answer(_estimate)
