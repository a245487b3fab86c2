"""`train --num-processes`: what it starts, refuses and passes on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import start_lorafit

from lorafit.cli.launch import Launch, free_port, requested_launch, without_launch_options
from lorafit.cli.supervise import Supervisor
from lorafit.errors import DeviceError, UsageError
from lorafit.hardware.processes import Processes, processes_of
from lorafit.report.events import read_events

NOTHING = dict.fromkeys(
    ("gpus", "num_processes", "num_machines", "machine_rank", "main_process_ip",
     "main_process_port")
)  # fmt: skip


def launch(here=None, **options):
    return requested_launch(**{**NOTHING, **options}, here=here or Processes())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"num_processes": 1}, None),
        ({"num_processes": 4}, Launch(4)),
        ({"gpus": "0,1"}, Launch(2)),
        ({"gpus": "0"}, None),
        ({"gpus": "2,3", "num_processes": 2}, Launch(2)),
        (
            {"num_machines": 2, "machine_rank": 1, "main_process_ip": "10.0.0.1"},
            Launch(1, 2, 1, "10.0.0.1", 29500),
        ),
        (
            {"num_processes": 8, "num_machines": 4, "machine_rank": 0, "main_process_ip": "h",
             "main_process_port": 6000},
            Launch(8, 4, 0, "h", 6000),
        ),
    ],
)  # fmt: skip
def test_options_say_what_is_started(options, expected):
    assert launch(**options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": "0,1", "num_processes": 4}, "names 2 GPUs, and --num-processes is 4"),
        ({"machine_rank": 1}, "are for several machines"),
        ({"num_machines": 2}, "needs --machine-rank and --main-process-ip"),
        (
            {"num_machines": 2, "machine_rank": 2, "main_process_ip": "h"},
            "--machine-rank 2 is beyond the 2 machines",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        launch(**options)


def test_a_process_of_a_launcher_starts_no_others_but_takes_its_own_number():
    here = Processes(1, 4, 1, 4)
    assert launch(here=here, num_processes=4) is None
    with pytest.raises(UsageError, match="a launcher started 4 processes already"):
        launch(here=here, num_processes=2)
    with pytest.raises(UsageError, match="a launcher started 4 processes already"):
        launch(here=here, gpus="0,1")


def test_the_ranks_of_the_second_machine_follow_those_of_the_first():
    variables = Launch(4, 2, 1, "10.0.0.1", 6000).environment(3, 6000, {"HOME": "/h"})
    assert processes_of(variables) == Processes(rank=7, size=8, local_rank=3, local_size=4)
    assert variables["MASTER_ADDR"] == "10.0.0.1"
    assert variables["HOME"] == "/h"
    assert "GLOO_SOCKET_IFNAME" not in variables


def test_started_processes_see_none_of_the_options_that_start_them():
    words = ["train", "--gpus", "0,1", "--num_processes=2", "--data", "x", "lora_r=4",
             "--machine-rank", "0", "--", "--gpus"]  # fmt: skip
    assert without_launch_options(words) == ["train", "--data", "x", "lora_r=4", "--", "--gpus"]


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "x", "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"},
    ],
)
def test_a_launchers_variables_that_do_not_fit_are_refused(variables):
    with pytest.raises(UsageError):
        processes_of(variables)


@pytest.mark.parametrize(
    ("variable", "option"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "--use_megatron_lm"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "--use_parallelism_config"),
    ],
)
def test_an_engine_of_accelerates_is_refused_with_what_to_use_instead(variable, option):
    with pytest.raises(UsageError, match=f"{variable} is set") as refusal:
        processes_of({variable: "true", "WORLD_SIZE": "1"})
    assert refusal.value.exit_code == 2
    assert option in str(refusal.value.hint)
    assert "--parallelism fsdp" in str(refusal.value.hint)
    assert processes_of({variable: "false"}) == Processes()


def test_a_process_without_a_launcher_is_alone():
    assert processes_of({}) == processes_of({"WORLD_SIZE": "1", "RANK": "0"}) == Processes()


def test_a_batch_that_cannot_be_split_is_refused_before_anything_is_started(
    run_lorafit, train_arguments, tmp_path
):
    outcome = run_lorafit(
        *train_arguments(tmp_path / "run", "--num-processes", 3, effective_batch_size=8,
                         gradient_accumulation_steps=None)
    )  # fmt: skip
    assert outcome.code == 2
    assert "an effective batch of 8 cannot be split over 3 devices" in outcome.err
    assert "2 or 4 devices" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_plans_for_the_processes_and_starts_none(run_lorafit, train_arguments, tmp_path):
    arguments = train_arguments(
        tmp_path / "run", "--num-processes", 2, "--dry-run", effective_batch_size=8,
        gradient_accumulation_steps=None,
    )  # fmt: skip
    outcome = run_lorafit(*arguments)
    assert outcome.code == 0, outcome.err
    assert "2 micro-batch x 2 accumulation x 2 devices = 8 effective batch" in outcome.err


# -- Supervision, with processes that do nothing


def sleeper(code="import time; time.sleep(600)", **options):
    return subprocess.Popen([sys.executable, "-S", "-c", code], **options)


def test_the_first_failure_gives_the_exit_code_and_ends_the_others(monkeypatch):
    # SIGKILL follows after as long again: a busy machine needs a while to end who got SIGTERM.
    monkeypatch.setattr("lorafit.cli.supervise._GRACE_SECONDS", 3)
    others = [sleeper(), sleeper("import sys; sys.exit(6)"), sleeper()]
    assert Supervisor().wait(others) == 6
    assert [process.returncode for process in others] == [-15, 6, -15]


def test_a_killed_process_is_named_by_its_rank(monkeypatch):
    monkeypatch.setattr("lorafit.cli.supervise._GRACE_SECONDS", 0.3)
    others = [sleeper(), sleeper("import os; os.kill(os.getpid(), 9)")]
    with pytest.raises(DeviceError, match=r"rank 5 \(pid \d+\) was ended by SIGKILL"):
        Supervisor(first_rank=4).wait(others)


def test_a_signal_reaches_every_process():
    code = """
import signal, sys, time
signal.signal(15, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(600)
"""
    others = [sleeper(code, stdout=subprocess.PIPE) for _ in range(2)]
    supervisor = Supervisor()
    for process in others:
        assert process.stdout.readline() == b"ready\n"
        process.stdout.close()
    with supervisor.forwarding():
        signal.raise_signal(signal.SIGTERM)
        assert supervisor.wait(others) == 75
    assert [process.returncode for process in others] == [75, 75]


# -- The real thing


@pytest.mark.slow
def test_the_launcher_trains_in_two_processes_of_its_own(train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    launched = start_lorafit(*train_arguments(run_dir, "--num-processes", 2, "--json",
                             gradient_accumulation_steps=None, effective_batch_size=4))  # fmt: skip
    out, err = launched.communicate(timeout=600)
    assert launched.returncode == 0, err
    assert out.count('"status": "completed"') == 1
    assert "x 2 devices = 4 effective batch" in err
    assert err.count("next:") == 1
    assert len(read_events(run_dir)) == 6


@pytest.mark.slow
def test_two_launchers_train_as_two_machines(train_arguments, tmp_path):
    run_dir, port = tmp_path / "run", free_port()
    arguments = train_arguments(run_dir, gradient_accumulation_steps=None, effective_batch_size=4)
    machines = [
        start_lorafit(
            *arguments, "--num-machines", 2, "--machine-rank", rank, "--main-process-ip",
            "127.0.0.1", "--main-process-port", port, GLOO_SOCKET_IFNAME="lo",
        )
        for rank in (1, 0)
    ]  # fmt: skip
    (_, second), (_, first) = (machine.communicate(timeout=600) for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], first + second
    assert second == ""
    assert "x 2 devices = 4 effective batch" in first
    assert len(read_events(run_dir)) == 6


@pytest.mark.slow
def test_a_machine_that_dies_ends_the_other_and_both_start_again(train_arguments, tmp_path):
    run_dir, port = tmp_path / "run", free_port()
    arguments = train_arguments(
        run_dir, gradient_accumulation_steps=None, effective_batch_size=4, max_steps=2000,
        save_steps=5, eval_steps=2000, ddp_timeout=120,
    )  # fmt: skip

    def start(rank):
        return start_lorafit(
            *arguments, "--num-machines", 2, "--machine-rank", rank, "--main-process-ip",
            "127.0.0.1", "--main-process-port", port, GLOO_SOCKET_IFNAME="lo",
        )  # fmt: skip

    first, second = start(0), start(1)
    wait_for((run_dir / "checkpoint-5").is_dir)
    second.kill()  # its process ends with it
    _, err = first.communicate(timeout=600)
    second.communicate()
    assert first.returncode in (4, 75, 143), err
    before = len(read_events(run_dir))
    first, second = start(0), start(1)
    wait_for(lambda: len(read_events(run_dir)) > before + 5)
    for machine in (first, second):
        machine.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=600)
    second.communicate(timeout=600)
    assert (first.returncode, second.returncode) == (75, 75), err
    assert "continuing from checkpoint-" in err


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_processes_end_with_a_launcher_that_is_killed(train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    launched = start_lorafit(
        *train_arguments(run_dir, "--num-processes", 2, gradient_accumulation_steps=None,
                         effective_batch_size=4, max_steps=5000, eval_steps=5000, save_steps=5000)
    )  # fmt: skip
    wait_for(lambda: len(read_events(run_dir)) > 2)
    launched.kill()
    launched.communicate(timeout=600)  # until the last of them has closed the streams
    wait_for(lambda: '"interrupted"' in (run_dir / "run.json").read_text())
    assert [path.name for path in run_dir.iterdir() if path.name.startswith("checkpoint-")]
    assert "LORAFIT_LAUNCHER" not in os.environ
