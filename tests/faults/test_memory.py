"""Rows F22 to F26 and F40: memory that runs out, and what is made smaller."""

import json

import pytest
import torch
from processes import Fault

from lorafit.cli.progress import TerminalProgress
from lorafit.report.events import read_events
from lorafit.training.checkpoints.checkpoint import verify_checkpoint

# Padded rows, so that a micro-batch is a number of rows.
BIG = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "padding_free": "false"}
HALF = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "padding_free": "false"}

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError("no more"),
]


def raise_(error):
    raise error


def losses(run_dir):
    return [event["loss"] for event in read_events(run_dir)]


@pytest.fixture
def out_of_memory(monkeypatch):
    """Return a function that lets a micro-batch with too many rows fail, in one step or in all."""
    from lorafit.training import trainer

    def arrange(max_rows, *, step=None, error=ERRORS[0], module=trainer, training=True):
        compute, on_step, done = module.micro_batch_loss, TerminalProgress.on_step, [0]

        def count(self, record):
            on_step(self, record)
            done[0] = record.step

        def loss(model, batch, *more):
            is_due = step is None or done[0] == step - 1
            if is_due and len(batch["input_ids"]) > max_rows and model.training == training:
                # The random numbers of the forward pass are drawn before memory runs out.
                compute(model, batch, *more)
                raise error
            return compute(model, batch, *more)

        monkeypatch.setattr(TerminalProgress, "on_step", count)
        monkeypatch.setattr(module, "micro_batch_loss", loss)

    return arrange


@pytest.mark.row("F22")
def test_f22_out_of_memory_in_the_first_step_halves_the_micro_batch_exactly(
    run_lorafit, train_arguments, out_of_memory, record_of, tmp_path
):
    assert run_lorafit(*train_arguments(tmp_path / "half", **HALF)).code == 0
    out_of_memory(2)
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir, **BIG))
    assert outcome.code == 0, outcome.err
    # The same split, and the random numbers are drawn again: equal to the last bit.
    assert losses(run_dir) == losses(tmp_path / "half")
    adapter = "adapter/adapter_model.safetensors"
    assert (run_dir / adapter).read_bytes() == (tmp_path / "half" / adapter).read_bytes()
    record = record_of(run_dir)
    (shrink,) = record["memory_recoveries"]
    assert (shrink["step"], shrink["activity"]) == (1, "step")
    assert shrink["change"] == "micro-batch 4 -> 2"
    assert min(shrink[f"{n}_bytes"] for n in ("predicted", "free", "observed", "room")) > 0
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("out of memory")]
    assert line.startswith("out of memory at step 1 (step): micro-batch 4 -> 2; predicted ")
    assert ", in use " in line
    assert ", free " in line


@pytest.mark.faults
@pytest.mark.row("F22", "F23")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_f22_out_of_memory_late_in_a_run_is_the_run_with_smaller_pieces(
    run_lorafit, train_arguments, tiny_model, out_of_memory, tmp_path, error
):
    # Without dropout, as the steps before were split otherwise and drew other numbers.
    exact = {"lora_dropout": 0.0, "model": tiny_model(resid_pdrop=0.0)}
    assert run_lorafit(*train_arguments(tmp_path / "half", **HALF, **exact)).code == 0
    out_of_memory(2, step=4, error=error)
    outcome = run_lorafit(*train_arguments(tmp_path / "run", **BIG, **exact))
    assert outcome.code == 0, outcome.err
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "half"), abs=1e-4)


@pytest.mark.row("F23")
def test_f23_the_longest_row_is_named_and_the_estimate_is_called_too_low(
    run_lorafit, train_arguments, out_of_memory, record_of, tmp_path
):
    out_of_memory(3, step=5)
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir, **BIG))
    assert outcome.code == 0, outcome.err
    (shrink,) = record_of(run_dir)["memory_recoveries"]
    assert shrink["step"] == 5
    assert shrink["is_estimator_error"]
    assert "colours.jsonl:" in shrink["longest_row"]
    assert shrink["longest_row"].endswith(" tokens")
    assert "the estimate was too low: please report run.json; longest row: " in outcome.err


@pytest.mark.row("F22")
def test_f22_a_shrunk_run_goes_on_shrunk_after_a_stop(
    run_lorafit, train_arguments, out_of_memory, record_of, monkeypatch, tmp_path
):
    assert run_lorafit(*train_arguments(tmp_path / "half", **HALF)).code == 0
    out_of_memory(2, step=1)
    report = TerminalProgress.on_step

    def stop(self, record):
        import signal

        report(self, record)
        if record.step == 3:
            signal.raise_signal(signal.SIGTERM)

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(TerminalProgress, "on_step", stop)
        assert run_lorafit(*train_arguments(run_dir, **BIG)).code == 75
    monkeypatch.setattr(TerminalProgress, "on_step", report)
    # Memory would not run out any more, but another split has other last bits.
    out_of_memory(4)
    assert run_lorafit(*train_arguments(run_dir, **BIG)).code == 0
    assert losses(run_dir) == losses(tmp_path / "half")
    assert len(record_of(run_dir)["memory_recoveries"]) == 1


@pytest.mark.row("F22")
def test_f22_a_token_budget_is_halved_too(
    run_lorafit, train_arguments, monkeypatch, record_of, tmp_path
):
    from lorafit.training import trainer

    compute = trainer.micro_batch_loss

    def loss(model, batch, *more):
        if model.training and batch["input_ids"].numel() > 80:
            raise ERRORS[0]
        return compute(model, batch, *more)

    monkeypatch.setattr(trainer, "micro_batch_loss", loss)
    run_dir = tmp_path / "run"
    more = {"per_device_train_batch_size": 4, "padding_free": "true"}
    outcome = run_lorafit(*train_arguments(run_dir, **more))
    assert outcome.code == 0, outcome.err
    changes = [shrink["change"] for shrink in record_of(run_dir)["memory_recoveries"]]
    assert changes
    assert all(change.startswith("micro-batch ") and change.endswith(" tokens")
               for change in changes)  # fmt: skip
    assert len(losses(run_dir)) == 6


@pytest.mark.row("F22")
@pytest.mark.parametrize(
    "error",
    [ERRORS[0], *(pytest.param(error, marks=pytest.mark.faults) for error in ERRORS[1:])],
    ids=lambda error: type(error).__name__,
)
def test_f22_without_recovery_the_numbers_to_type_are_given(
    run_lorafit, train_arguments, fail_in_step, record_of, tmp_path, error
):
    run_dir = tmp_path / "run"
    fail_in_step(3, lambda loss: raise_(error))
    outcome = run_lorafit(*train_arguments(run_dir, **BIG, on_oom="fail"))
    assert outcome.code == 4
    assert "ran out of this machine's memory with micro-batch 4 x 64 tokens" in outcome.err
    assert str(error).splitlines()[0] in outcome.err
    assert "--per-device-train-batch-size 2 --gradient-accumulation-steps 4" in outcome.err
    assert record_of(run_dir)["status"] == "out_of_memory"
    verify_checkpoint(run_dir / "checkpoint-2")


@pytest.mark.row("F24")
@pytest.mark.parametrize("max_rows", [1, 0])
def test_f24_validation_shrinks_alone_or_is_left_out(
    run_lorafit, train_arguments, out_of_memory, record_of, tmp_path, max_rows
):
    from lorafit.evaluation import loss as evaluation

    out_of_memory(max_rows, module=evaluation, training=False)
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir, **BIG))
    assert outcome.code == 0, outcome.err
    changes = [shrink["change"] for shrink in record_of(run_dir)["memory_recoveries"]]
    # Two rows are held out, so that a batch of two is the first that holds both.
    shrinking = ["evaluation batch 4 -> 2", "evaluation batch 2 -> 1"]
    if max_rows == 1:
        assert changes == shrinking
        assert [e["step"] for e in read_events(run_dir) if "validation_loss" in e] == [3, 6]
    else:
        skipped = "one row is too much, so this validation is left out"
        assert changes == [*shrinking, skipped, skipped]
        assert not any("validation_loss" in event for event in read_events(run_dir))
    saved = json.loads((run_dir / "checkpoint-6" / "recovery.json").read_text())
    assert (saved["units"], saved["eval_batch_size"]) == (4, 1)


@pytest.mark.row("F24")
def test_f24_a_save_that_runs_out_of_memory_is_repeated(
    run_lorafit, train_arguments, monkeypatch, record_of, tmp_path
):
    from lorafit.training.checkpoints import state

    save, failed = state.save_optimizer, []

    def save_optimizer(optimizer, folder):
        if not failed:
            failed.append(folder)
            raise ERRORS[0]
        save(optimizer, folder)

    monkeypatch.setattr(state, "save_optimizer", save_optimizer)
    run_dir = tmp_path / "run"
    assert run_lorafit(*train_arguments(run_dir)).code == 0
    verify_checkpoint(run_dir / "checkpoint-2")
    (shrink,) = record_of(run_dir)["memory_recoveries"]
    assert (shrink["activity"], shrink["step"]) == ("save", 2)


@pytest.mark.row("F25")
def test_f25_at_one_row_layers_are_checkpointed_and_then_the_run_ends(
    run_lorafit, train_arguments, fail_in_step, record_of, tmp_path
):
    fail_in_step(1, lambda loss: raise_(ERRORS[0]))
    run_dir = tmp_path / "run"
    more = {"per_device_train_batch_size": 2, "padding_free": "false"}
    outcome = run_lorafit(*train_arguments(run_dir, **more))
    assert outcome.code == 4
    changes = [shrink["change"] for shrink in record_of(run_dir)["memory_recoveries"]]
    assert changes == [
        "micro-batch 2 -> 1",
        "checkpointed layers 0 -> 1 of 2",
        "checkpointed layers 1 -> 2 of 2",
    ]
    assert "ran out of memory with one row of " in outcome.err
    assert "--max-length" in outcome.err.split("hint:")[1]
    assert record_of(run_dir)["status"] == "out_of_memory"


@pytest.mark.faults
@pytest.mark.row("F25")
def test_f25_checkpointing_layers_in_the_middle_of_a_run_changes_no_number(
    run_lorafit, train_arguments, monkeypatch, record_of, tmp_path
):
    from lorafit.model.build import decoder_layers
    from lorafit.training import trainer

    compute = trainer.micro_batch_loss

    def loss(model, batch, *more):
        value = compute(model, batch, *more)
        if model.training and not all(m.gradient_checkpointing for m in decoder_layers(model)):
            raise ERRORS[0]
        return value

    more = {"per_device_train_batch_size": 1, "padding_free": "false"}
    assert run_lorafit(*train_arguments(tmp_path / "plain", **more)).code == 0
    monkeypatch.setattr(trainer, "micro_batch_loss", loss)
    outcome = run_lorafit(*train_arguments(tmp_path / "run", **more))
    assert outcome.code == 0, outcome.err
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


@pytest.mark.faults
@pytest.mark.row("F26")
def test_f26_a_real_limit_of_the_hosts_memory_is_recovered_from_or_ends_with_4(
    fork_server, train_arguments, tiny_model, record_of, tmp_path
):
    # Logits of 32,000 entries a token: 8 rows of 256 tokens take 262 MB for them alone.
    model = tiny_model(vocab_size=32_000, max_position_embeddings=512, resid_pdrop=0.0)
    data = tmp_path / "long.jsonl"
    row = {"prompt": "the colour of a thing " * 8, "completion": " red" * 40}
    data.write_text("".join(json.dumps({**row, "prompt": f"{i} {row['prompt']}"}) + "\n"
                            for i in range(32)))  # fmt: skip
    changes = {"model": model, "data": data, "max_length": 256, "per_device_train_batch_size": 8,
               "gradient_accumulation_steps": 1, "padding_free": "false", "kernels": "stock",
               "validation_split": 0, "lora_dropout": 0.0}  # fmt: skip
    arguments = train_arguments(tmp_path / "run", **changes)
    fault = Fault("limit_memory", {"extra_bytes": 150 * 2**20, "step": 1})
    outcome = fork_server.run(*arguments, fault=fault)
    assert outcome.code == 0, outcome.err
    shrinks = record_of(tmp_path / "run")["memory_recoveries"]
    assert shrinks[0]["step"] == 2
    assert "allocate memory" in shrinks[0]["error"]
    assert shrinks[0]["change"] == "micro-batch 8 -> 4"
    smaller = {**changes, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert fork_server.run(*train_arguments(tmp_path / "half", **smaller)).code == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "half"), abs=1e-4)
    # Without recovery it ends with the advice for the host's memory, not for a GPU's.
    arguments = train_arguments(tmp_path / "failed", **changes, on_oom="fail")
    outcome = fork_server.run(*arguments, fault=fault)
    assert outcome.code == 4, outcome.err
    assert "ran out of this machine's memory" in outcome.err
    assert "ulimit -v" in outcome.err


@pytest.mark.row("F40")
def test_f40_memory_that_is_taken_between_plan_and_load_is_noticed(
    run_lorafit, train_arguments, monkeypatch, tmp_path
):
    from dataclasses import replace

    from lorafit.training.planning import fit

    detect = fit.detect_device
    monkeypatch.setattr(
        fit, "detect_device", lambda name: replace(detect(name), free_bytes=50_000_000)
    )
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 4
    assert "but only 47.7 MiB of " in outcome.err
    assert "the run takes " in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.row("F40")
def test_f40_what_the_estimate_says_fits_is_never_refused_at_the_start(
    run_lorafit, tiny_model, tiny_data, monkeypatch, tmp_path
):
    from lorafit.hardware import cpu

    flags = ["--model", tiny_model(), "--data", tiny_data, "--max-length", 64,
             "--per-device-train-batch-size", 4, "--json"]  # fmt: skip

    def ask():
        yield run_lorafit("estimate-memory", *flags, "--hardware", "auto")
        yield run_lorafit("train", "--output-dir", tmp_path / "run", *flags, "--dry-run")

    estimate, start = (json.loads(outcome.out) for outcome in ask())
    asked, needed = estimate["peak"]["process_bytes"], start["memory"]["process_bytes"]
    # The run has read the data: where its rows are short, it needs less than was asked about.
    assert needed <= asked
    for has, fits in ((2 * asked, True), (needed // 2, False)):
        monkeypatch.setattr(cpu, "parse_meminfo", lambda text, has=has: (has, has))
        estimate, start = ask()
        starts = start.code == 0 and "train would refuse" not in start.err
        assert (estimate.code == 0, starts) == (fits, fits), start.err
    outcome = run_lorafit("train", "--output-dir", tmp_path / "run", *flags)
    assert outcome.code == 4
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.row("F22")
def test_f22_a_real_limit_of_a_gpus_memory_is_recovered_from(
    run_lorafit, train_arguments, tiny_model, monkeypatch, record_of, tmp_path
):
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    model = tiny_model(
        vocab_size=51_200, hidden_size=512, intermediate_size=2048, num_hidden_layers=8,
        resid_pdrop=0.0,
    )  # fmt: skip
    changes = {"model": model, "device": "cuda", "per_device_train_batch_size": 8,
               "gradient_accumulation_steps": 1, "padding_free": "false", "kernels": "stock",
               "compute_dtype": "float32", "lora_dropout": 0.0}  # fmt: skip
    half = {**changes, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert run_lorafit(*train_arguments(tmp_path / "half", **half)).code == 0
    enough = torch.cuda.max_memory_reserved() + 8 * 2**20
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(enough / total)
    try:
        outcome = run_lorafit(*train_arguments(tmp_path / "run", "--allow-oom-attempt", **changes))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert outcome.code == 0, outcome.err
    assert record_of(tmp_path / "run")["memory_recoveries"][0]["change"] == "micro-batch 8 -> 4"
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "half"), abs=1e-4)
