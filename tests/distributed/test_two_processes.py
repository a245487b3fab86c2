"""Two real processes on gloo against one process alone."""

import json

import pytest
from processes import Fault

from distributed.conftest import assert_close_runs, assert_same_end, record_of
from lorafit.training.checkpoints.checkpoint import list_checkpoints, verify_checkpoint


@pytest.fixture
def alone(run_lorafit, share_arguments, tmp_path):
    """Return a factory of runs of the same effective batch in this one process."""

    def make(**changes):
        run_dir = tmp_path / "alone"
        outcome = run_lorafit(*share_arguments(run_dir, **changes))
        assert outcome.code == 0, outcome.err
        return run_dir

    return make


def test_two_processes_train_as_one_does_and_only_the_first_speaks(
    run_ranks, share_arguments, alone, tmp_path
):
    run_dir = tmp_path / "two"
    first, second = run_ranks(share_arguments(run_dir, "--json"))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert (second.out, second.err) == ("", "")
    assert json.loads(first.out)["status"] == "completed"
    assert_close_runs(alone(), run_dir)
    batch = record_of(run_dir)["plan"]["batch"]
    assert (batch["num_devices"], batch["gradient_accumulation_steps"]) == (2, 2)
    assert batch["effective_batch_size"] == 8
    assert len([*(run_dir / "tensorboard").iterdir()]) == 1
    last = list_checkpoints(run_dir)[-1]
    assert "rng-1.safetensors" in verify_checkpoint(last.folder).files


VARIANTS = {
    "padded": {"padding_free": "false"},
    "packed": {"packing": True, "effective_batch_size": 4},
    "accumulating": {"per_device_train_batch_size": 1, "max_grad_norm": 0.05},
    "checkpointed": {"gradient_checkpointing": True, "label_smoothing_factor": 0.1},
    "stock": {"kernels": "stock", "optim": "sgd"},
    "nf4": {"quantization": "nf4"},
    "best": {"load_best_model_at_end": True, "early_stopping_patience": 2, "eval_steps": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_form_of_step_is_shared_alike(run_ranks, share_arguments, alone, tmp_path, changes):
    run_dir = tmp_path / "two"
    outcomes = run_ranks(share_arguments(run_dir, **changes))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    assert_close_runs(alone(**changes), run_dir)


@pytest.mark.slow
def test_three_processes_share_a_last_step_of_two_rows(run_ranks, share_arguments, alone, tmp_path):
    changes = {"effective_batch_size": 3 * 2, "validation_split": 0}
    run_dir = tmp_path / "three"
    outcomes = run_ranks(share_arguments(run_dir, **changes), size=3)
    assert [outcome.code for outcome in outcomes] == [0, 0, 0], outcomes[0].err
    assert_close_runs(alone(**changes), run_dir)


# -- Resuming


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_bits(run_ranks, share_arguments, tmp_path):
    # With dropout, so that each process has random numbers of its own to restore.
    changes = {"lora_dropout": 0.1, "save_steps": 2, "ddp_timeout": 30}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert [o.code for o in run_ranks(share_arguments(whole, **changes))] == [0, 0]
    arguments = share_arguments(stopped, **changes)
    # Only the second process gets the signal: both finish the step, save and stop.
    fault = {1: Fault("signal_in_micro_step", {"count": 4, "number": 15})}
    first, second = run_ranks(arguments, faults=fault)
    assert (first.code, second.code) == (75, 75), first.err
    assert "SIGTERM received: saved at step 2 of 6" in first.err
    assert second.err == ""
    assert record_of(stopped)["status"] == "interrupted"
    assert [o.code for o in run_ranks(arguments)] == [0, 0]
    assert_same_end(whole, stopped, 6)


@pytest.mark.slow
def test_another_number_of_processes_is_refused_unless_it_is_named(
    run_ranks, run_lorafit, share_arguments, alone, tmp_path
):
    run_dir = tmp_path / "two"
    fault = {0: Fault("signal_at_step", {"step": 2, "number": 15})}
    assert [o.code for o in run_ranks(share_arguments(run_dir), faults=fault)] == [75, 75]
    saved = list_checkpoints(run_dir)[-1].step
    refused = run_lorafit(*share_arguments(run_dir))
    assert refused.code == 5
    assert "num_devices" in refused.err
    assert "--allow-mismatch world_size continues it all the same" in refused.err
    outcome = run_lorafit(*share_arguments(run_dir, "--allow-mismatch", "world_size"))
    assert outcome.code == 0, outcome.err
    assert f"continuing from checkpoint-{saved}" in outcome.err
    assert_close_runs(alone(), run_dir)


# -- What goes wrong


@pytest.mark.faults
def test_a_non_finite_loss_stops_both_before_the_update_and_is_said_once(
    run_ranks, share_arguments, tmp_path
):
    fault = {1: Fault("spoil_micro_step", {"count": 3})}
    first, second = run_ranks(share_arguments(tmp_path / "two"), faults=fault)
    assert (first.code, second.code) == (6, 6), first.err + second.err
    assert (first.err + second.err).count("error:") == 1
    assert "step 2: loss nan" in first.err


@pytest.mark.faults
@pytest.mark.parametrize("size", [2, 3])
def test_memory_that_runs_out_in_one_process_shrinks_all_of_them(
    run_ranks, share_arguments, alone, tmp_path, size
):
    changes = {"effective_batch_size": 6 * 2, "padding_free": "false", "validation_split": 0}
    run_dir = tmp_path / "shared"
    fault = {1: Fault("exhaust_micro_step", {"count": 3})}
    outcomes = run_ranks(share_arguments(run_dir, **changes), size=size, faults=fault)
    assert [o.code for o in outcomes] == [0] * size, outcomes[0].err
    (shrink,) = record_of(run_dir)["memory_recoveries"]
    assert shrink["change"] == "micro-batch 2 -> 1"
    assert_close_runs(alone(**changes), run_dir)


@pytest.mark.faults
def test_an_error_of_one_process_ends_all_with_its_words_and_code(
    run_ranks, share_arguments, tmp_path
):
    fault = {1: Fault("fail_micro_step", {"count": 3})}
    first, second = run_ranks(share_arguments(tmp_path / "two"), faults=fault)
    assert (first.code, second.code) == (7, 7), first.err + second.err
    assert "error: rank 1: /data: the disk is gone" in second.err
    assert "error:" not in first.err
    assert record_of(tmp_path / "two")["failure"]["error"] == "rank 1: /data: the disk is gone"


@pytest.mark.faults
def test_an_error_of_all_processes_is_said_by_the_first(run_ranks, share_arguments, tmp_path):
    outcomes = run_ranks(share_arguments(tmp_path / "two", effective_batch_size=7))
    assert outcomes[0].code == 2
    assert "7 cannot be split over 2 devices" in outcomes[0].err
    assert "effective_batch_size 4 or 8" in outcomes[0].err


@pytest.mark.faults
def test_processes_with_different_data_do_not_begin(start_ranks, share_arguments, tmp_path):
    pytest.importorskip("torch")
    run_dir = tmp_path / "two"
    fault = {1: Fault("other_fingerprint", {})}
    outcomes = [ranks.wait() for ranks in start_ranks(share_arguments(run_dir), faults=fault)]
    assert [o.code for o in outcomes] == [3, 3], outcomes[0].err
    assert "the processes would not train the same run" in outcomes[0].err
    assert "data_sha256" in outcomes[0].err


@pytest.mark.faults
@pytest.mark.row("F28")
def test_f28_a_killed_process_ends_the_run_and_the_next_one_continues_it(
    run_ranks, start_ranks, share_arguments, tmp_path
):
    whole, run_dir = tmp_path / "whole", tmp_path / "two"
    changes = {"lora_dropout": 0.1}
    assert [o.code for o in run_ranks(share_arguments(whole, **changes))] == [0, 0]
    arguments = share_arguments(run_dir, **changes)
    fault = {1: Fault("signal_in_micro_step", {"count": 9, "number": 9})}
    ranks = start_ranks(arguments, faults=fault)
    second = ranks[1].wait()
    first = ranks[0].wait(60)  # from the kill on
    assert (first.code, second.code) == (4, -9)
    assert "rank 0 lost the other processes" in first.err
    assert [o.code for o in run_ranks(arguments)] == [0, 0]
    assert_same_end(whole, run_dir, 6)


@pytest.mark.faults
@pytest.mark.row("F29")
@pytest.mark.parametrize("hung", [0, 1])
def test_f29_a_hanging_process_is_named_within_the_time_out(
    start_ranks, share_arguments, tmp_path, hung
):
    arguments = share_arguments(tmp_path / "two", ddp_timeout=20)
    fault = {hung: Fault("signal_in_micro_step", {"count": 3, "number": 19})}
    ranks = start_ranks(arguments, faults=fault)
    outcome = ranks[1 - hung].wait()
    ranks[hung].send(9)
    ranks[hung].wait()
    assert outcome.code == 4, outcome.err
    assert "the run stood still for 20 s: rank" in outcome.err
    assert f"rank {hung} d" in outcome.err
    assert "--ddp-timeout" in outcome.err


@pytest.mark.faults
@pytest.mark.row("F30")
def test_f30_processes_that_come_to_the_save_at_random_times_publish_it_once(
    run_ranks, share_arguments, tmp_path
):
    run_dir = tmp_path / "two"
    arguments = share_arguments(
        run_dir, save_steps=1, num_train_epochs=None, max_steps=20, save_total_limit=20
    )
    fault = {rank: Fault("sleep_before_saves", {"seed": rank}) for rank in range(2)}
    outcomes = run_ranks(arguments, faults=fault)
    assert [o.code for o in outcomes] == [0, 0], outcomes[0].err
    assert [c.step for c in list_checkpoints(run_dir)] == [*range(1, 21)]
    for checkpoint in list_checkpoints(run_dir):
        verify_checkpoint(checkpoint.folder)
    assert not [*run_dir.glob(".staging-*")]
