"""The templates of examples/cluster: parsed by what would read them, as far as that is here."""

import importlib.util
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lorafit.cli.launch import OPTIONS, Launch
from lorafit.hardware.processes import Processes, processes_of

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "cluster"
SLURM = FOLDER / "slurm_two_nodes.sh"


def options_in(text):
    """Return the long options of the `lorafit train` in a script."""
    command = text[text.index("lorafit train") :]
    return set(re.findall(r"(?<= )--[a-z-]+", command))


def test_the_slurm_script_is_bash_and_names_options_that_exist():
    assert subprocess.run(["bash", "-n", str(SLURM)]).returncode == 0
    text = SLURM.read_text()
    used = options_in(text[: text.index("training=$!")])
    assert used >= set(OPTIONS) - {"--gpus"}


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (4, False)])
def test_the_slurm_script_queues_again_on_75_alone(tmp_path, code, requeued):
    tools = tmp_path / "bin"
    tools.mkdir()
    words = {
        "srun": f'shift; exec env SLURM_NODEID=1 "$@"; exit {code}',
        "lorafit": f'echo "$@" > {tmp_path}/arguments; exit {code}',
        "scontrol": f'[ "$1" = show ] && echo "node-a\nnode-b" || echo "$@" > {tmp_path}/requeued',
    }
    for name, body in words.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8",
    }  # fmt: skip
    done = subprocess.run(["bash", str(SLURM), "my.jsonl"], env=environment)
    assert done.returncode == code
    assert (tmp_path / "requeued").exists() is requeued
    arguments = (tmp_path / "arguments").read_text()
    assert (
        "--num-processes 8 --num-machines 2 --machine-rank 1 --main-process-ip node-a "
        "--main-process-port 29500"
    ) in arguments


def test_the_sky_task_gives_every_node_its_number():
    task = yaml.safe_load((FOLDER / "sky_two_nodes.yaml").read_text())
    assert task["num_nodes"] == 2
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert task["file_mounts"]["/runs"]["mode"] == "MOUNT"
    assert options_in(task["run"]) >= set(OPTIONS) - {"--gpus"}
    assert '--machine-rank "$SKYPILOT_NODE_RANK"' in task["run"]


def test_the_train_job_runs_lorafit_by_torchrun():
    job = yaml.safe_load((FOLDER / "trainjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert [*trainer["command"], *trainer["args"][:3]] == ["torchrun", "-m", "lorafit", "train"]


def test_a_ray_worker_knows_its_place():
    spec = importlib.util.spec_from_file_location("ray_train", FOLDER / "ray_train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    numbers = {"get_world_rank": 5, "get_world_size": 8, "get_local_rank": 1,
               "get_local_world_size": 4}  # fmt: skip
    context = SimpleNamespace(**{name: (lambda n=n: n) for name, n in numbers.items()})
    variables = module.environment_of(context, "10.0.0.1", 6000)
    assert processes_of(variables) == Processes(5, 8, 1, 4)
    ours = Launch(4, 2, 1, "10.0.0.1", 6000).environment(1, 6000, {})
    assert {name: ours[name] for name in variables} == variables
