"""`accelerate launch` with a configuration for an engine: what it asks for, by lorafit's means."""

import importlib.util
import subprocess
import sys

import pytest
from tiny import child_environment

from distributed.conftest import assert_close_runs, free_port, record_of

ZERO = """
distributed_type: DEEPSPEED
deepspeed_config:
  gradient_accumulation_steps: 2
  gradient_clipping: 0.05
  offload_optimizer_device: {offload}
  offload_param_device: none
  zero3_init_flag: {init}
  zero_stage: {stage}
"""
FSDP = """
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_activation_checkpointing: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_offload_params: false
  fsdp_reshard_after_forward: true
"""
COMMON = """
compute_environment: LOCAL_MACHINE
machine_rank: 0
main_process_port: {port}
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: true
"""


@pytest.fixture
def accelerate_launch(tmp_path):
    """Return a function that trains in two processes of `accelerate launch`, by a configuration."""
    path = []
    if importlib.util.find_spec("deepspeed") is None:
        # accelerate starts nothing for DeepSpeed where it is not installed, and asks it for no
        # more than the name of a file and of a class of models.
        package = tmp_path / "packages" / "deepspeed"
        (package / "launcher").mkdir(parents=True)
        (package / "__init__.py").write_text("class DeepSpeedEngine: pass\n")
        (package / "launcher" / "__init__.py").touch()
        (package / "launcher" / "runner.py").write_text('DEEPSPEED_ENVIRONMENT_NAME = ".env"\n')
        about = tmp_path / "packages" / "deepspeed-0.19.8.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.19.8\n")
        path = [str(tmp_path / "packages")]

    def launch(arguments, engine, **choices):
        config = tmp_path / "accelerate.yaml"
        config.write_text((engine + COMMON).format(port=free_port(), **choices))
        environ = child_environment(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
        environ["PYTHONPATH"] = ":".join([*path, environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
             "-m", "lorafit", *map(str, arguments)],
            env=environ, capture_output=True, text=True, timeout=900,
        )  # fmt: skip

    return launch


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "parallelism"), [(2, "ddp"), (3, "fsdp")])
def test_a_deepspeed_configuration_trains_as_one_process_with_its_settings_does(
    accelerate_launch, run_lorafit, share_arguments, tmp_path, stage, parallelism
):
    # 2 rows x 2 accumulation x 2 processes are the 8 rows of one process.
    alone = run_lorafit(*share_arguments(tmp_path / "alone", max_grad_norm=0.05))
    assert alone.code == 0, alone.err
    run_dir = tmp_path / "launched"
    arguments = share_arguments(run_dir, effective_batch_size=None)
    done = accelerate_launch(
        arguments, ZERO, stage=stage, offload="none", init=str(stage == 3).lower()
    )
    assert done.returncode == 0, done.stderr
    assert_close_runs(tmp_path / "alone", run_dir)
    plan = record_of(run_dir)["plan"]
    assert plan["parallelism"] == parallelism
    assert f"ZeRO {stage} is done without DeepSpeed" in plan["reasons"]["parallelism"]
    batch = plan["batch"]
    assert (batch["gradient_accumulation_steps"], batch["effective_batch_size"]) == (2, 8)
    clipping = record_of(run_dir)["settings"]["max_grad_norm"]
    assert "ACCELERATE_GRADIENT_CLIPPING" in clipping["origin"]


@pytest.mark.slow
def test_a_configuration_for_fsdp_shares_the_weights(
    accelerate_launch, run_lorafit, share_arguments, tmp_path
):
    alone = run_lorafit(*share_arguments(tmp_path / "alone"))
    assert alone.code == 0, alone.err
    run_dir = tmp_path / "launched"
    done = accelerate_launch(share_arguments(run_dir, gradient_checkpointing=None), FSDP)
    assert done.returncode == 0, done.stderr
    assert_close_runs(tmp_path / "alone", run_dir)
    record = record_of(run_dir)
    assert record["plan"]["parallelism"] == "fsdp"
    checkpointing = record["settings"]["gradient_checkpointing"]
    assert checkpointing["value"] is True
    assert "FSDP_ACTIVATION_CHECKPOINTING" in checkpointing["origin"]


@pytest.mark.slow
def test_a_deepspeed_configuration_that_contradicts_the_command_is_refused(
    accelerate_launch, share_arguments, tmp_path
):
    arguments = share_arguments(tmp_path / "run", max_grad_norm=1.0, effective_batch_size=None)
    done = accelerate_launch(arguments, ZERO, stage=2, offload="cpu", init="false")
    assert done.returncode != 0
    assert "max_grad_norm (flag --max-grad-norm)" in done.stderr
    assert "they are 1 and 0.05" in done.stderr
    assert "lorafit moves neither weights nor optimizer state" in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not (tmp_path / "run").exists()
