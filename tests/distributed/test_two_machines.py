"""Two machines, as two network namespaces with a cable between them."""

import shlex
import subprocess
import sys

import pytest
from tiny import child_environment

from distributed.conftest import assert_close_runs, record_of
from lorafit.report.events import read_events

_CABLE = """
ip link set lo up
mount -t tmpfs tmpfs /run && mkdir -p /run/netns && ip netns add other
ip link add here type veth peer name there netns other
ip addr add 10.77.0.1/24 dev here && ip link set here up
ip -n other link set lo up
ip -n other addr add 10.77.0.2/24 dev there && ip -n other link set there up
first() { GLOO_SOCKET_IFNAME=here "$@" --machine-rank 0; }
second() { GLOO_SOCKET_IFNAME=there ip netns exec other "$@" --machine-rank 1; }
"""


def in_namespaces(script, arguments, timeout=900):
    """Run a script in which `first CMD` and `second CMD` run on either machine; `$@` is lorafit."""
    command = [sys.executable, "-m", "lorafit", *map(str, arguments), "--num-machines", "2",
               "--main-process-ip", "10.77.0.1", "--main-process-port", "29511"]  # fmt: skip
    return subprocess.run(
        ["unshare", "-rnm", "bash", "-c", _CABLE + script, "bash", *command],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module", autouse=True)
def _needs_namespaces():
    made = subprocess.run(
        ["unshare", "-rnm", "bash", "-ec", _CABLE], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"this system gives no network namespaces: {made.stderr[:100]}")


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_two_machines_train_as_one_process_does(
    run_lorafit, share_arguments, tmp_path, parallelism
):
    assert run_lorafit(*share_arguments(tmp_path / "alone")).code == 0
    script = 'second "$@" & first "$@"; code=$?; wait $!; echo "codes $code $?"'
    done = in_namespaces(script, share_arguments(tmp_path / "two", parallelism=parallelism))
    assert "codes 0 0" in done.stdout, done.stderr
    assert_close_runs(tmp_path / "alone", tmp_path / "two")
    assert record_of(tmp_path / "two")["plan"]["parallelism"] == parallelism


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_a_killed_machine_ends_the_other_and_both_go_on_when_started_again(
    share_arguments, tmp_path, parallelism
):
    run_dir = tmp_path / "two"
    arguments = share_arguments(
        run_dir, num_train_epochs=None, max_steps=60, save_steps=5, eval_steps=60, ddp_timeout=60,
        parallelism=parallelism,
    )  # fmt: skip
    events = shlex.quote(str(run_dir / "events.jsonl"))
    script = f"""
second "$@" & machine=$!
( until [ "$(wc -l < {events} 2>/dev/null || echo 0)" -ge 12 ]; do sleep 0.1; done
  pkill -KILL -P $machine; kill -KILL $machine ) &
first "$@"; echo "first $?"; wait $machine
second "$@" & first "$@"; echo "again $?"; wait $!; echo "again $?"
"""
    done = in_namespaces(script, arguments)
    assert "again 0\nagain 0" in done.stdout, done.stdout + done.stderr
    assert "first 0" not in done.stdout
    assert "continuing from checkpoint-" in done.stderr
    assert [event["step"] for event in read_events(run_dir)] == [*range(1, 61)]
    record = record_of(run_dir)
    assert (record["status"], record["plan"]["parallelism"]) == ("completed", parallelism)
