"""Ray Train: each worker is one process of a `lorafit train`.

python examples/cluster/ray_train.py --workers 4 -- --preset balanced --data my.jsonl

Ray places the workers and tells each its rank; lorafit does the rest, in a process of its own so
that its signals and exit code are its own too. Needs `pip install "ray[train]"`, and a run folder
that all nodes see.
"""

import argparse
import os
import subprocess
import sys
from typing import Any


def environment_of(context: Any, address: str, port: int) -> dict[str, str]:
    """Return the variables by which `lorafit train` knows its place.

    Args:
        context: Ray Train's context of this worker.
        address: where the first worker runs.
        port: a free port there.
    """
    return {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def train_worker(config: dict[str, Any]) -> None:
    """Run one process of the training; Ray calls it in every worker."""
    import ray.train

    # Ray's own torch group has shown the workers where the first of them is.
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]) + 1
    place = environment_of(ray.train.get_context(), address, port)
    command = [sys.executable, "-m", "lorafit", "train", *config["arguments"]]
    code = subprocess.run(command, env={**os.environ, **place}, check=False).returncode
    if code:
        raise SystemExit(code)


def main() -> None:
    """Start the workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="workers without GPUs")
    parser.add_argument("arguments", nargs="*", help="arguments of `lorafit train`, after --")
    chosen = parser.parse_args()

    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"arguments": chosen.arguments},
        scaling_config=ScalingConfig(num_workers=chosen.workers, use_gpu=not chosen.cpu),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
