"""A resumed run is the uninterrupted run, bit for bit, or it is refused."""

import json
import signal

import pytest
from tiny import colour_rows, write_jsonl

from lorafit.report.events import read_events

NUMBERS = ("step", "loss", "learning_rate", "grad_norm", "epoch", "tokens", "supervised_tokens")
STATE = ("adapter_model.safetensors", "optimizer.safetensors", "optimizer.json", "scheduler.json",
         "rng.safetensors", "rng.json")  # fmt: skip


def numbers(run_dir):
    return [tuple(event[name] for name in NUMBERS) for event in read_events(run_dir)]


def assert_same_run(one, other):
    """Same steps, same adapter, same optimizer, schedule and random state at the end."""
    assert numbers(one) == numbers(other)
    adapter = "adapter/adapter_model.safetensors"
    assert (one / adapter).read_bytes() == (other / adapter).read_bytes()
    for name in STATE:
        left, right = ((run / "checkpoint-6" / name).read_bytes() for run in (one, other))
        same = json.loads(left) == json.loads(right) if name.endswith("json") else left == right
        assert same, name


@pytest.fixture(scope="module")
def references():
    return {}


@pytest.fixture
def check(references, run_lorafit, train_arguments, interrupted, tmp_path, tmp_path_factory):
    """Stop a run at steps, continue it, and compare with one that was never stopped."""

    def check(stops, number=signal.SIGTERM, **changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in references:
            whole = tmp_path_factory.mktemp("reference") / "run"
            assert run_lorafit(*train_arguments(whole, **changes)).code == 0
            references[key] = whole
        run_dir = tmp_path / "run"
        for stop in stops:
            interrupted(run_dir, stop, **changes)
            assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"
        outcome = run_lorafit(*train_arguments(run_dir, **changes))
        assert outcome.code == 0, outcome.err
        assert f"continuing from checkpoint-{stops[-1]}" in outcome.err
        assert_same_run(references[key], run_dir)

    return check


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_run_stopped_at_any_step_ends_as_if_it_never_had_been(check, stop):
    check([stop])


def test_a_run_stopped_twice_ends_the_same(check):
    check([2, 4])


@pytest.mark.parametrize("stop", [1, 4])
def test_checkpointing_does_not_break_resuming(check, stop):
    check([stop], gradient_checkpointing=True)


def test_single_micro_batches_and_another_optimizer_resume_too(check):
    check(
        [4], gradient_accumulation_steps=1, per_device_train_batch_size=3, optim="adafactor"
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {"dataloader_num_workers": 2},
        {"quantization": "nf4"},
        {"lr_scheduler_type": "linear", "optim": "sgd"},
        {"use_dora": True, "use_rslora": True},
        {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1},
        {"modules_to_save": "lm_head"},
        {"target_modules": "q_proj,lm_head", "lora_dropout": 0.1},
    ],
    ids="-".join,
)
def test_every_way_of_training_resumes_exactly(check, stop, changes):
    check([stop], **changes)


def test_a_kill_after_a_checkpoint_loses_nothing_but_time(
    run_lorafit, train_arguments, references, check, interrupted, tmp_path
):
    # What kill -9 in step 5 leaves: checkpoints of steps 2 and 4, an event too many, half a line,
    # half a save, and a record that still says "running".
    run_dir = tmp_path / "run"
    interrupted(run_dir, 5)
    for path in (run_dir / "checkpoint-5").iterdir():
        path.unlink()
    (run_dir / "checkpoint-5").rename(run_dir / ".staging-checkpoint-6")
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**record, "status": "running"}))
    with (run_dir / "events.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-4" in outcome.err
    assert "removed .staging-checkpoint-6, which a killed save left behind" in outcome.err
    whole = tmp_path / "whole"
    assert run_lorafit(*train_arguments(whole)).code == 0
    assert_same_run(whole, run_dir)


def test_a_finished_run_is_left_alone(run_lorafit, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    assert run_lorafit(*train_arguments(run_dir)).code == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run_dir.rglob("*.*")}
    for more in ((), ("--resume", "auto"), ("--json",)):
        outcome = run_lorafit(*train_arguments(run_dir, *more))
        assert outcome.code == 0
        assert "already complete at step 6: nothing was done" in outcome.err
    assert json.loads(outcome.out)["steps"] == 6
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run_dir.rglob("*.*")}
    assert after == before


@pytest.fixture
def stopped(references, interrupted, tmp_path_factory):
    """A run that was stopped at step 2; what is refused leaves it alone, so tests share it."""
    if "stopped" not in references:
        references["stopped"] = interrupted(tmp_path_factory.mktemp("stopped") / "run", 2)
    return references["stopped"]


@pytest.mark.row("F37")
@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"seed": 7}, "seed           then: 42  now: 7"),
        ({"learning_rate": 2e-2}, "learning_rate  then: 0.01  now: 0.02"),
        ({"lora_r": 4}, "lora_r  then: 8  now: 4"),
        ({"target_modules": "fc1,fc2"}, "target_modules"),
        ({"max_steps": 7}, "total_steps    then: 6  now: 7"),
        ({"optim": "sgd"}, "optim  then: adamw_torch  now: sgd"),
        ({"per_device_train_batch_size": 1}, "micro_batch    then: 2  now: 1"),
        ({"gradient_accumulation_steps": 2}, "accumulation"),
        ({"lora_dropout": 0.2}, "lora_dropout  then: 0.1  now: 0.2"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type  then: cosine  now: linear"),
        ({"warmup_steps": 2}, "warmup_steps  then: 1  now: 2"),
    ],
)
def test_f37_a_changed_setting_is_refused_with_both_values(
    run_lorafit, train_arguments, stopped, changes, row
):
    before = sorted(path.name for path in stopped.iterdir())
    outcome = run_lorafit(*train_arguments(stopped, **changes))
    assert outcome.code == 5, outcome.err
    assert "this folder holds a run with other settings" in outcome.err
    assert " ".join(row.split()) in " ".join(outcome.err.split())
    assert "another --output-dir to start afresh" in outcome.err
    assert sorted(path.name for path in stopped.iterdir()) == before


@pytest.mark.row("F37")
@pytest.mark.parametrize("resume", ["auto", "checkpoint-2"])
def test_f37_asking_for_it_does_not_mix_two_runs(run_lorafit, train_arguments, stopped, resume):
    wanted = resume if resume == "auto" else stopped / resume
    outcome = run_lorafit(*train_arguments(stopped, "--resume", wanted, seed=7))
    assert outcome.code == 5, outcome.err
    assert "seed  then: 42  now: 7" in outcome.err


@pytest.mark.row("F37")
def test_f37_changed_data_is_refused(run_lorafit, train_arguments, interrupted, tmp_path):
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(20))
    interrupted(tmp_path / "run", 2, data=data)
    rows = colour_rows(20)
    rows[7]["completion"] = " blue"
    write_jsonl(data, rows)
    outcome = run_lorafit(*train_arguments(tmp_path / "run", data=data))
    assert outcome.code == 5
    assert "this folder holds a run with other data;" in outcome.err
    changed = f"data_sha256  the data has changed: {data} with 20 rows, of other content than then"
    assert changed in outcome.err
    assert f"hint: restore {data} to continue it as it was, or another" in outcome.err
    assert "--allow-mismatch data_sha256 continues it all the same" in outcome.err


@pytest.mark.row("F37", "B47")
def test_f37_other_data_is_told_from_changed_data(
    run_lorafit, train_arguments, interrupted, tmp_path
):
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(20))
    interrupted(tmp_path / "run", 2, data=data)
    more = write_jsonl(tmp_path / "more rows.jsonl", colour_rows(21))
    outcome = run_lorafit(*train_arguments(tmp_path / "run", data=more))
    assert outcome.code == 5
    assert f"the data is {more} with 21 rows, and was {data} with 20 rows" in outcome.err
    assert "then: 18  now: 19  (rows to train on)" in outcome.err
    assert f"hint: --data {data} to continue it" in outcome.err


@pytest.mark.row("F37")
def test_f37_a_changed_base_model_is_refused(
    run_lorafit, train_arguments, interrupted, own_model, tmp_path
):
    model = own_model()
    interrupted(tmp_path / "run", 2, model=model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "resid_pdrop": 0.5}))
    outcome = run_lorafit(*train_arguments(tmp_path / "run", model=model))
    assert outcome.code == 5
    assert "this folder holds a run with other base model;" in outcome.err
    assert f"base_config_sha256  config.json has changed in {model}" in outcome.err


def test_what_does_not_change_numbers_may_change(
    run_lorafit, train_arguments, interrupted, tmp_path
):
    run_dir = interrupted(tmp_path / "run", 2)
    outcome = run_lorafit(
        *train_arguments(run_dir, save_steps=5, eval_steps=2, logging_steps=1, save_total_limit=9)
    )
    assert outcome.code == 0, outcome.err


@pytest.mark.row("B14")
def test_b14_resume_of_a_folder_that_is_not_there(run_lorafit, train_arguments, tmp_path):
    missing = tmp_path / "run" / "checkpoint-9"
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--resume", missing))
    assert outcome.code == 5
    assert f"there is no checkpoint folder {missing}" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.row("B14")
def test_b14_resume_auto_with_nothing_to_resume_starts_afresh_and_says_so(
    run_lorafit, train_arguments, tmp_path
):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--resume", "auto", max_steps=2))
    assert outcome.code == 0
    assert "a new run" in outcome.err


def test_an_explicit_checkpoint_is_the_one_that_is_used(
    run_lorafit, train_arguments, interrupted, tmp_path
):
    run_dir = interrupted(tmp_path / "run", 5)
    outcome = run_lorafit(*train_arguments(run_dir, "--resume", run_dir / "checkpoint-3"))
    assert outcome.code == 5
    assert "run holds checkpoint-2, checkpoint-4, checkpoint-5" in outcome.err
    outcome = run_lorafit(*train_arguments(run_dir, "--resume", run_dir / "checkpoint-2"))
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-2, as asked with --resume" in outcome.err
    assert [event["step"] for event in read_events(run_dir)] == [1, 2, 3, 4, 5, 6]
    whole = tmp_path / "whole"
    assert run_lorafit(*train_arguments(whole)).code == 0
    assert_same_run(whole, run_dir)


def test_a_checkpoint_of_another_folder_is_refused(
    run_lorafit, train_arguments, interrupted, tmp_path
):
    other = interrupted(tmp_path / "other", 2)
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--resume", other / "checkpoint-2"))
    assert outcome.code == 5
    assert "lies outside of --output-dir" in outcome.err
    assert f"--output-dir {other}" in outcome.err


def test_an_empty_resume_is_refused(run_lorafit, train_arguments, tmp_path):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--resume", ""))
    assert outcome.code == 2
    assert "--resume is empty" in outcome.err
