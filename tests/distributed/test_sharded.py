"""Two real processes that share the base weights (FSDP2 on gloo), against two that do not."""

import json
import math

import pytest
from processes import Fault

from distributed.conftest import (
    assert_close_runs,
    assert_same_end,
    free_port,
    record_of,
)
from lorafit.report.events import read_events
from lorafit.training.checkpoints.checkpoint import list_checkpoints, verify_checkpoint


@pytest.fixture
def run_both(run_ranks, share_arguments, tmp_path):
    """Return a function that runs two processes with shared and with whole weights."""

    def run(**changes):
        for name in ("fsdp", "ddp"):
            arguments = share_arguments(tmp_path / name, parallelism=name, **changes)
            first, second = run_ranks(arguments)
            assert (first.code, second.code) == (0, 0), first.err + second.err
        return tmp_path / "fsdp", tmp_path / "ddp"

    return run


def last_step(run_dir):
    return list_checkpoints(run_dir)[-1].step


# -- What each process holds


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_each_process_holds_half_of_the_base_weights(
    fork_server, tiny_model, tmp_path, quantization
):
    port, folder = free_port(), tiny_model(resid_pdrop=0.0)
    outputs = [tmp_path / f"{rank}.json" for rank in range(2)]
    ranks = [
        fork_server.start_function(
            "distributed.probe_shards", rank, port, folder, quantization, outputs[rank]
        )
        for rank in range(2)
    ]
    for started in ranks:
        outcome = started.wait()
        assert outcome.code == 0, outcome.err
    for output in outputs:
        found = json.loads(output.read_text())
        assert found["sharded_loss"] == found["loss"]
        # Rows of weights that two processes cannot halve are padded.
        assert found["held_bytes"] == pytest.approx(found["whole_bytes"] / 2, rel=0.02)
        assert found["held_after_bytes"] == found["held_bytes"]


# -- The same run


def test_shared_weights_train_to_the_bits_of_whole_ones(run_both):
    # A step of three rows, one at a time: the first process follows the second one's last pass,
    # and must neither draw random numbers for it nor add to its gradients. It alone writes samples.
    shared, whole = run_both(
        lora_dropout=0.1, sample_prompts=2, validation_split=0.05, padding_free="false",
        per_device_train_batch_size=1,
    )  # fmt: skip
    assert read_events(whole)[-1]["supervised_tokens"] < read_events(whole)[0]["supervised_tokens"]
    assert_same_end(shared, whole, last_step(whole))
    samples = [(run / "samples.jsonl").read_text() for run in (shared, whole)]
    assert samples[0] == samples[1] != ""
    plan = record_of(shared)["plan"]
    assert plan["parallelism"] == "fsdp"
    assert plan["reasons"]["parallelism"].startswith("fsdp, as asked for")
    assert record_of(whole)["plan"]["parallelism"] == "ddp"
    adapters = [(run / "adapter/adapter_model.safetensors").read_bytes() for run in (shared, whole)]
    assert adapters[0] == adapters[1]


VARIANTS = {
    "stock": {"kernels": "stock", "optim": "sgd"},
    "stock, checkpointed": {"kernels": "stock", "gradient_checkpointing": True},
    "checkpointed": {"gradient_checkpointing": True, "label_smoothing_factor": 0.1},
    "one layer checkpointed": {"gradient_checkpointing": True, "checkpointed_layers": 1},
    "padded, one row at a time": {"padding_free": "false", "per_device_train_batch_size": 1},
    "packed": {"packing": True, "effective_batch_size": 4},
    "nf4": {"quantization": "nf4"},
    "nf4, checkpointed": {"quantization": "nf4", "gradient_checkpointing": True},
    "nf4, stock": {"quantization": "nf4", "double_quant": False, "kernels": "stock"},
    "bf16": {"compute_dtype": "bfloat16"},
    "dora": {"use_dora": True},
    "a module saved whole": {"modules_to_save": "lm_head"},
    "best": {"load_best_model_at_end": True, "early_stopping_patience": 2, "eval_steps": 1},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_form_of_step_shares_weights_alike(run_both, changes):
    shared, whole = run_both(**changes)
    assert_same_end(shared, whole, last_step(whole))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])  # gemma3 ties its output layer
def test_other_architectures_share_weights_too(run_both, tiny_model, architecture):
    shared, whole = run_both(model=tiny_model(architecture))
    assert_same_end(shared, whole, last_step(whole))


@pytest.mark.slow
def test_shared_weights_train_as_one_process_does(
    run_ranks, run_lorafit, share_arguments, tmp_path
):
    # Three processes share a last step of two rows: one of them has none.
    changes = {"effective_batch_size": 3 * 2, "validation_split": 0}
    outcome = run_lorafit(*share_arguments(tmp_path / "alone", **changes))
    assert outcome.code == 0, outcome.err
    outcomes = run_ranks(share_arguments(tmp_path / "three", parallelism="fsdp", **changes), size=3)
    assert [o.code for o in outcomes] == [0, 0, 0], outcomes[0].err
    assert_close_runs(tmp_path / "alone", tmp_path / "three")


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_libraries")
def test_an_adapter_of_shared_weights_loads_in_plain_peft(run_ranks, share_arguments, tmp_path):
    import torch
    from peft import AutoPeftModelForCausalLM

    run_dir = tmp_path / "fsdp"
    first, _ = run_ranks(share_arguments(run_dir, parallelism="fsdp"))
    assert first.code == 0, first.err
    model = AutoPeftModelForCausalLM.from_pretrained(run_dir / "adapter")
    factors = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert factors
    assert all(type(p.data) is torch.Tensor and bool(p.any()) for p in factors.values())


# -- Resuming


@pytest.mark.slow
@pytest.mark.parametrize("then", ["fsdp", "ddp"])
def test_a_stopped_run_continues_to_the_same_bits_with_shared_or_whole_weights(
    run_ranks, share_arguments, tmp_path, then
):
    changes = {"lora_dropout": 0.1, "save_steps": 2, "ddp_timeout": 60}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    outcomes = run_ranks(share_arguments(whole, parallelism="fsdp", **changes))
    assert [o.code for o in outcomes] == [0, 0], outcomes[0].err
    fault = {1: Fault("signal_in_micro_step", {"count": 4, "number": 15})}
    first, second = run_ranks(share_arguments(stopped, parallelism="fsdp", **changes), faults=fault)
    assert (first.code, second.code) == (75, 75), first.err
    assert "SIGTERM received: saved at step 2 of 6" in first.err
    outcomes = run_ranks(share_arguments(stopped, parallelism=then, **changes))
    assert [o.code for o in outcomes] == [0, 0], outcomes[0].err
    assert_same_end(whole, stopped, 6)


@pytest.mark.slow
def test_nf4_weights_shared_by_two_go_on_in_one_process_and_then_in_two_again(
    run_ranks, run_lorafit, share_arguments, tmp_path
):
    changes = {"quantization": "nf4"}
    assert run_lorafit(*share_arguments(tmp_path / "alone", **changes)).code == 0
    run_dir = tmp_path / "moving"
    shared = {**changes, "parallelism": "fsdp"}

    def stopped_at(step):
        return {0: Fault("signal_at_step", {"step": step, "number": 15})}

    begun = run_ranks(share_arguments(run_dir, **shared), faults=stopped_at(2))
    assert [o.code for o in begun] == [75, 75], begun[0].err
    first = last_step(run_dir)
    refused = run_lorafit(*share_arguments(run_dir, **changes))
    assert (refused.code, last_step(run_dir)) == (5, first)
    allowed = ("--allow-mismatch", "world_size")
    (alone,) = run_ranks(
        share_arguments(run_dir, *allowed, **changes), size=1, faults=stopped_at(4)
    )
    assert alone.code == 75, alone.err
    assert f"continuing from checkpoint-{first}" in alone.err
    second = last_step(run_dir)
    assert 2 <= first < second < 6
    again = run_ranks(share_arguments(run_dir, *allowed, **shared))
    assert [o.code for o in again] == [0, 0], again[0].err
    assert f"continuing from checkpoint-{second}" in again[0].err
    assert record_of(run_dir)["plan"]["parallelism"] == "fsdp"
    assert_close_runs(tmp_path / "alone", run_dir)


# -- What goes wrong


def test_what_cannot_be_shared_is_refused_before_anything_is_loaded(
    run_lorafit, share_arguments, tmp_path
):
    alone = run_lorafit(*share_arguments(tmp_path / "one", parallelism="fsdp"))
    assert alone.code == 2
    assert "fsdp shares the base weights among processes, and there is one" in alone.err
    assert "hint: --num-processes 2 or more" in alone.err
    assert not (tmp_path / "one").exists()


OUT_OF_MEMORY = {
    "between passes": (0, Fault("exhaust_micro_step", {"count": 2}), False),
    "forward": (1, Fault("exhaust_in_pass", {"count": 3, "where": "forward"}), False),
    "backward": (0, Fault("exhaust_in_pass", {"count": 3, "where": "backward"}), False),
    "backward, checkpointed": (
        1, Fault("exhaust_in_pass", {"count": 3, "where": "backward"}), True
    ),
    "gather": (0, Fault("exhaust_in_pass", {"count": 1, "where": "gather"}), False),
}  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize(
    ("failing", "fault", "checkpointing"), OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY
)
def test_memory_that_runs_out_in_a_pass_of_one_process_shrinks_the_step_of_all(
    run_ranks, run_lorafit, share_arguments, tmp_path, failing, fault, checkpointing
):
    changes = {"padding_free": "false", "gradient_checkpointing": checkpointing}
    run_dir = tmp_path / "fsdp"
    outcomes = run_ranks(
        share_arguments(run_dir, parallelism="fsdp", **changes), faults={failing: fault}
    )
    assert [o.code for o in outcomes] == [0, 0], outcomes[0].err + outcomes[1].err
    (shrink,) = record_of(run_dir)["memory_recoveries"]
    assert (shrink["change"], shrink["activity"]) == ("micro-batch 2 -> 1", "step")
    small = share_arguments(tmp_path / "small", per_device_train_batch_size=1, **changes)
    assert run_lorafit(*small).code == 0
    assert_close_runs(run_dir, tmp_path / "small", 1e-4)


@pytest.mark.faults
def test_memory_that_runs_out_in_validation_makes_its_batches_smaller_in_all_processes(
    run_ranks, run_lorafit, share_arguments, tmp_path
):
    run_dir = tmp_path / "fsdp"
    changes = {"validation_split": 0.4, "per_device_eval_batch_size": 4, "padding_free": "false"}
    fault = {1: Fault("exhaust_validation", {"count": 1})}
    arguments = share_arguments(run_dir, parallelism="fsdp", sample_prompts=2, **changes)
    outcomes = run_ranks(arguments, faults=fault)
    assert [o.code for o in outcomes] == [0, 0], outcomes[0].err + outcomes[1].err
    (shrink,) = record_of(run_dir)["memory_recoveries"]
    assert (shrink["change"], shrink["activity"]) == ("evaluation batch 4 -> 2", "evaluation")
    alone = share_arguments(tmp_path / "alone", sample_prompts=2, **changes)
    assert run_lorafit(*alone).code == 0
    assert_close_runs(run_dir, tmp_path / "alone", 1e-5)
    samples = [(run / "samples.jsonl").read_text() for run in (run_dir, tmp_path / "alone")]
    assert samples[0] == samples[1] != ""


@pytest.mark.faults
def test_memory_that_is_not_even_enough_to_gather_a_layer_ends_all_processes(
    run_ranks, share_arguments, tmp_path
):
    fault = {1: Fault("exhaust_in_pass", {"count": 9, "where": "always"})}
    run_dir = tmp_path / "fsdp"
    first, second = run_ranks(share_arguments(run_dir, parallelism="fsdp"), faults=fault)
    assert (first.code, second.code) == (4, 4), first.err + second.err
    assert "ran out of memory again with nothing but the weights of one layer" in second.err
    assert "every checkpoint written so far is intact: run the same command again" in second.err
    assert (first.err + second.err).count("error:") == 1
    last = list_checkpoints(run_dir)[-1]
    verify_checkpoint(last.folder)
    assert last.step >= 2


@pytest.mark.faults
def test_a_non_finite_loss_stops_both_before_the_update(run_ranks, share_arguments, tmp_path):
    fault = {1: Fault("spoil_micro_step", {"count": 3})}
    first, second = run_ranks(share_arguments(tmp_path / "fsdp", parallelism="fsdp"), faults=fault)
    assert (first.code, second.code) == (6, 6), first.err + second.err
    assert (first.err + second.err).count("error:") == 1
    assert "step 2: loss nan" in first.err


@pytest.mark.faults
def test_a_killed_process_ends_the_run_and_the_next_one_continues_it(
    run_ranks, share_arguments, tmp_path
):
    whole, run_dir = tmp_path / "whole", tmp_path / "fsdp"
    changes = {"parallelism": "fsdp", "lora_dropout": 0.1}
    assert [o.code for o in run_ranks(share_arguments(whole, **changes))] == [0, 0]
    arguments = share_arguments(run_dir, **changes)
    fault = {1: Fault("signal_in_micro_step", {"count": 9, "number": 9})}
    first, second = run_ranks(arguments, faults=fault)
    assert (first.code, second.code) == (4, -9), first.err
    assert "rank 0 lost the other processes while" in first.err
    assert [o.code for o in run_ranks(arguments)] == [0, 0]
    assert_same_end(whole, run_dir, 6)
    assert math.isfinite(record_of(run_dir)["results"]["final_loss"])
