"""Rows F36 to F39: upgrades, changed settings, finished runs, and resuming at every step."""

import json
import signal

import pytest
from processes import Fault
from tiny import colour_rows, write_jsonl

from lorafit.report.events import read_events


@pytest.fixture
def stopped_at(fork_server, train_arguments):
    """Return a factory of runs that SIGTERM stopped after a step."""

    def make(run_dir, step, **changes):
        fault = Fault("signal_at_step", {"step": step, "number": signal.SIGTERM})
        outcome = fork_server.run(*train_arguments(run_dir, **changes), fault=fault)
        assert outcome.code == 75, outcome.err
        return run_dir

    return make


@pytest.mark.row("F36")
def test_f36_other_versions_are_told_and_the_promise_is_taken_back(
    run_lorafit, train_arguments, stopped_at, tmp_path
):
    run_dir = stopped_at(tmp_path / "run", 3)
    path = run_dir / "checkpoint-3" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["versions"]["transformers"] = "5.17.0"
    manifest["facts"]["device"] = "another machine"
    manifest["facts"]["num_threads"] = 64
    path.write_text(json.dumps(manifest))
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    assert "since checkpoint-3 was written, this changed: transformers 5.17.0 -> " in outcome.err
    assert "device another machine -> " in outcome.err
    assert "CPU threads 64 -> " in outcome.err
    assert "not bit for bit as it would have" in outcome.err


@pytest.mark.row("F38")
def test_f38_a_run_killed_between_its_last_save_and_its_end_only_ends(
    run_lorafit, train_arguments, whole_run, assert_same_run, tmp_path
):
    import shutil

    run_dir = shutil.copytree(whole_run(), tmp_path / "run")
    shutil.rmtree(run_dir / "adapter")
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**record, "status": "running"}))
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    assert "done: all steps were taken before; the adapter is of step 6" in outcome.err
    assert_same_run(whole_run(), run_dir)


@pytest.mark.row("F37")
def test_f37_an_allowed_mismatch_goes_on_and_is_recorded(
    run_lorafit, train_arguments, stopped_at, record_of, tmp_path
):
    run_dir = stopped_at(tmp_path / "run", 3, lr_scheduler_type="constant", warmup_steps=None)
    more = {"lr_scheduler_type": "constant", "warmup_steps": None, "learning_rate": 5e-3}
    refused = run_lorafit(*train_arguments(run_dir, **more))
    assert refused.code == 5
    assert "--allow-mismatch learning_rate continues it all the same" in refused.err
    outcome = run_lorafit(
        *train_arguments(run_dir, "--allow-mismatch", "learning_rate", "--resume",
                         run_dir / "checkpoint-2", **more)
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "learning_rate was 0.01 and is 0.005: not the same run any more" in outcome.err
    # The new rate is used at once, and what the old course saved later is out of the way.
    assert [event["learning_rate"] for event in read_events(run_dir)] == [0.01] * 2 + [0.005] * 4
    assert (run_dir / "set-aside-checkpoint-3").is_dir()
    assert record_of(run_dir)["allowed_mismatches"] == {
        "learning_rate": {"then": 0.01, "now": 0.005}
    }


@pytest.mark.row("F37")
@pytest.mark.parametrize(
    ("name", "message"),
    [("lora_r", "it decides the shapes"), ("learning_rte", "did you mean learning_rate?")],
)
def test_f37_what_cannot_be_allowed_is_a_usage_error(
    run_lorafit, train_arguments, tmp_path, name, message
):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--allow-mismatch", name))
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.row("F37")
def test_f37_other_base_weights_of_the_same_shape_are_refused(
    run_lorafit, train_arguments, stopped_at, own_model, tmp_path
):
    from safetensors.torch import load_file, save_file

    model = own_model()
    run_dir = stopped_at(tmp_path / "run", 2, model=model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.fc2.weight"] *= 1.01
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    outcome = run_lorafit(*train_arguments(run_dir, model=model))
    assert outcome.code == 5
    assert "base_weights" in outcome.err


# -- Extending -----------------------------------------------------------------------------

CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": None}


@pytest.mark.row("F37")
def test_f37_a_finished_run_is_extended_as_if_it_had_been_longer(
    fork_server, train_arguments, whole_run, assert_same_run, record_of, tmp_path
):
    run_dir = tmp_path / "run"
    assert fork_server.run(*train_arguments(run_dir, max_steps=4, **CONSTANT)).code == 0
    arguments = train_arguments(run_dir, "--extend", "6steps", max_steps=4, **CONSTANT)
    outcome = fork_server.run(*arguments)
    assert outcome.code == 0, outcome.err
    assert "4 -> 6 steps; 4 are done, 2 follow" in outcome.err
    assert "(no jump)" in outcome.err
    assert record_of(run_dir)["extensions"][0]["new_total_steps"] == 6
    assert record_of(run_dir)["attempts"][0]["status"] == "completed"
    # With a constant rate, the longer run is the one that was meant from the start.
    assert_same_run(whole_run(**CONSTANT), run_dir)
    # The same command again is the same request.
    again = fork_server.run(*arguments)
    assert again.code == 0
    assert "already complete at step 6" in again.err


@pytest.mark.row("F37")
def test_f37_the_jump_of_the_learning_rate_is_shown_before_and_is_what_happens(
    run_lorafit, train_arguments, tmp_path
):
    run_dir = tmp_path / "run"
    assert run_lorafit(*train_arguments(run_dir)).code == 0
    before = sorted(path.name for path in run_dir.iterdir())
    arguments = train_arguments(run_dir, "--extend", "4epochs")
    shown = run_lorafit(*arguments, "--dry-run", "--json")
    assert shown.code == 0, shown.err
    change = json.loads(shown.out)["extension"]
    assert (change["old_total_steps"], change["new_total_steps"]) == (6, 12)
    # Cosine over 11 steps after one of warm-up: (1 + cos(pi * 5 / 11)) / 2 of the peak.
    assert change["new_learning_rate"] == pytest.approx(1e-2 * 0.5711574)
    assert change["old_learning_rate"] == 0.0
    assert change["new_warmup_share"] == pytest.approx(1 / 12)
    assert "a jump of +57.1% of the peak" in shown.err
    assert "▁" in shown.err
    assert sorted(path.name for path in run_dir.iterdir()) == before
    assert run_lorafit(*arguments).code == 0
    events = read_events(run_dir)
    assert len(events) == 12
    assert events[6]["learning_rate"] == pytest.approx(change["new_learning_rate"])
    assert events[5]["learning_rate"] < 1.1e-3


@pytest.mark.row("F37")
@pytest.mark.parametrize(
    ("length", "code", "message"),
    [
        ("2", 2, "is not a length"),
        ("-1steps", 2, "is not a length"),
        ("1.5steps", 2, "is not a length"),
        ("nanepochs", 2, "is not a length"),
        ("9steps", 2, "there is no run in"),
    ],
)
def test_f37_an_extension_that_makes_no_sense_is_a_usage_error(
    run_lorafit, train_arguments, tmp_path, length, code, message
):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--extend", length))
    assert outcome.code == code
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.row("F37")
def test_f37_a_run_is_not_extended_to_less_than_it_is(
    run_lorafit, train_arguments, whole_run, tmp_path
):
    outcome = run_lorafit(*train_arguments(whole_run(), "--extend", "5steps"))
    assert outcome.code == 2
    assert "the run is 6 steps long already, and this asks for 5" in outcome.err


# -- The sweep -----------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.row("F39")
@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_f39_resuming_at_every_step_of_three_epochs_is_exact(
    fork_server, train_arguments, assert_same_run, tmp_path,
    workers, accumulation, checkpointing, packing,
):  # fmt: skip
    import shutil

    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(12))
    changes = {
        "data": data, "validation_split": 0, "num_train_epochs": 3, "max_steps": None,
        "dataloader_num_workers": workers, "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 1 if packing else 4 if accumulation == 1 else 2,
        "gradient_checkpointing": checkpointing, "packing": packing, "save_steps": 1,
        "save_total_limit": 1000,
    }  # fmt: skip
    whole = tmp_path / "whole"
    outcome = fork_server.run(*train_arguments(whole, **changes))
    assert outcome.code == 0, outcome.err
    last = len(read_events(whole))
    assert last > 3  # steps inside of an epoch too, not only at its end
    for step in range(1, last):
        # What a kill right after this step's save leaves.
        run_dir = shutil.copytree(whole, tmp_path / f"run-{step}")
        shutil.rmtree(run_dir / "adapter")
        for later in range(step + 1, last + 1):
            shutil.rmtree(run_dir / f"checkpoint-{later}")
        record = json.loads((run_dir / "run.json").read_text())
        (run_dir / "run.json").write_text(json.dumps({**record, "status": "running"}))
        outcome = fork_server.run(*train_arguments(run_dir, **changes))
        assert outcome.code == 0, outcome.err
        assert f"continuing from checkpoint-{step}" in outcome.err
        assert_same_run(whole, run_dir, last)
