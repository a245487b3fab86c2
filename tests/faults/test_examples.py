"""The examples that queue a run again, with stand-ins for the cluster's commands."""

import os
import signal
import subprocess

import pytest
import yaml
from tiny import ROOT

SLURM = ROOT / "examples" / "slurm_requeue.sh"


@pytest.fixture
def cluster(tmp_path):
    """A folder of commands: `lorafit`, whose end a test decides, and `scontrol`, which notes."""

    def make(training):
        commands = tmp_path / "bin"
        commands.mkdir()
        for name, body in (("lorafit", training), ("scontrol", 'echo "$@" > "$NOTES"')):
            path = commands / name
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        environment = {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "NOTES": str(tmp_path / "notes"),
        }
        return subprocess.Popen(
            ["bash", str(SLURM), "my.jsonl"], env=environment, stdout=subprocess.PIPE, text=True
        )

    return make


def test_a_signal_before_the_time_limit_queues_the_job_again(cluster, tmp_path):
    job = cluster("trap 'sleep 0.2; exit 75' TERM; echo ready; while :; do sleep 0.05; done")
    assert job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=600)
    assert job.returncode == 75
    assert (tmp_path / "notes").read_text() == "requeue 17\n"


@pytest.mark.parametrize("code", [0, 3, 6])
def test_any_other_end_is_the_end_of_the_job(cluster, tmp_path, code):
    job = cluster(f"exit {code}")
    job.communicate(timeout=600)
    assert job.returncode == code
    assert not (tmp_path / "notes").exists()


def test_the_spot_example_is_yaml_that_recovers_on_75_alone():
    task = yaml.safe_load((ROOT / "examples" / "sky_requeue.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert "lorafit train" in task["run"]
    assert task["resources"]["use_spot"] is True
