import json

import pytest
import torch
from tiny import colour_rows, write_jsonl

from lorafit.report.events import read_events
from lorafit.training.checkpoints.checkpoint import verify_checkpoint

CONTRACT = {
    "step", "loss", "learning_rate", "grad_norm", "tokens", "supervised_tokens",
    "tokens_per_second", "memory_allocated_bytes", "memory_reserved_bytes",
}  # fmt: skip


def test_a_run_leaves_its_records_checkpoints_and_a_verified_adapter(
    run_lorafit, train_arguments, tmp_path
):
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    assert outcome.out == ""
    present = {path.name for path in run_dir.iterdir()}
    assert present == {"run.json", "events.jsonl", "adapter", "report.html", "tensorboard",
                       "checkpoint-2", "checkpoint-4", "checkpoint-6"}  # fmt: skip
    assert {p.name for p in (run_dir / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    for step in (2, 4, 6):
        assert verify_checkpoint(run_dir / f"checkpoint-{step}").step == step

    record = json.loads((run_dir / "run.json").read_text())
    assert record["schema_version"] == 1
    assert record["status"] == "completed"
    assert record["settings"]["learning_rate"] == {"value": 0.01, "origin": "flag --learning-rate"}
    assert record["settings"]["lora_r"] == {"value": 8, "origin": "default"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["plan"]["batch"]["effective_batch_size"] == 6
    assert record["plan"]["reasons"]["device"]
    assert record["results"]["checkpoints"] == [2, 4, 6]

    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert all(event.keys() >= CONTRACT for event in events)
    assert [event["step"] for event in events if "validation_loss" in event] == [3, 6]
    assert events[-1]["loss"] < events[0]["loss"]
    assert sum(event["tokens"] for event in events) == record["results"]["tokens"]


def test_the_summary_says_what_came_of_it_and_what_to_type_next(
    run_lorafit, train_arguments, tmp_path
):
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert "done: 6 steps, loss " in outcome.err
    assert ", validation " in outcome.err
    adapter = tmp_path / "run" / "adapter"
    assert f"adapter: {adapter} (plain PEFT)" in outcome.err
    assert f"lorafit evaluate --adapter {adapter} --data FILE" in outcome.err
    assert f"lorafit generate --adapter {adapter} --prompt" in outcome.err


def test_the_learning_rate_of_each_step_is_the_one_its_update_used(
    run_lorafit, train_arguments, tmp_path
):
    run_dir = tmp_path / "run"
    arguments = train_arguments(run_dir, warmup_steps=2, lr_scheduler_type="linear")
    assert run_lorafit(*arguments).code == 0
    rates = [event["learning_rate"] for event in read_events(run_dir)]
    # Warm-up over two steps from 0 to the peak, then down to 0 after the sixth.
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize(("rows", "batch", "accumulation"), [(20, 3, 2), (19, 4, 3), (5, 2, 4)])
def test_the_plan_announces_the_steps_that_are_taken(
    run_lorafit, train_arguments, tmp_path, rows, batch, accumulation
):
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(rows))
    run_dir = tmp_path / "run"
    outcome = run_lorafit(
        *train_arguments(
            run_dir, data=data, max_steps=None, num_train_epochs=2, validation_split=0,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        )
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    record = json.loads((run_dir / "run.json").read_text())
    assert len(read_events(run_dir)) == record["plan"]["schedule"]["total_steps"]
    assert read_events(run_dir)[-1]["epoch"] == pytest.approx(2.0)


def test_validation_runs_at_the_end_too(run_lorafit, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    assert run_lorafit(*train_arguments(run_dir, eval_steps=4)).code == 0
    steps = [event["step"] for event in read_events(run_dir) if "validation_loss" in event]
    assert steps == [4, 6]


def loss_by_hand(model_dir, adapter, rows):
    """Mean over all target tokens: one row at a time, unpadded, softmax in float64."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    losses = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        log_p = torch.log_softmax(logits.double(), -1)
        losses += [-log_p[i - 1, ids[i]] for i in range(len(prompt), len(ids))]
    return float(torch.stack(losses).mean()), len(losses)


def test_validation_loss_is_the_exact_token_mean_however_it_is_batched(
    run_lorafit, train_arguments, tiny_model, tmp_path
):
    held_out = colour_rows(31)[20:]
    validation = write_jsonl(tmp_path / "held-out.jsonl", held_out)
    found = []
    for batch in (1, 4, 11):
        run_dir = tmp_path / f"run-{batch}"
        outcome = run_lorafit(
            *train_arguments(
                run_dir, validation_data=validation, per_device_eval_batch_size=batch, max_steps=2
            )
        )
        assert outcome.code == 0, outcome.err
        found.append(read_events(run_dir)[-1]["validation_loss"])
    by_hand, _ = loss_by_hand(tiny_model(), tmp_path / "run-1" / "adapter", held_out)
    assert found == pytest.approx([by_hand] * 3, rel=1e-6)


def test_only_the_newest_checkpoints_are_kept(run_lorafit, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    assert run_lorafit(*train_arguments(run_dir, save_steps=1, save_total_limit=2)).code == 0
    assert {p.name for p in run_dir.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-6"}
    assert not list(run_dir.glob(".staging-*"))


def test_no_validation_is_possible_and_said(run_lorafit, train_arguments, tmp_path):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", validation_split=0, max_steps=2))
    assert outcome.code == 0
    assert all("validation_loss" not in event for event in read_events(tmp_path / "run"))
    assert ", validation " not in outcome.err.split("done:")[1]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "qwen2"])
def test_every_architecture_trains_from_the_command_line(
    run_lorafit, train_arguments, tiny_model, tmp_path, architecture
):
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir, model=tiny_model(architecture)))
    assert outcome.code == 0, outcome.err
    events = read_events(run_dir)
    assert events[-1]["loss"] < events[0]["loss"]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_trains_from_the_command_line(
    run_lorafit, train_arguments, tmp_path, quantization
):
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir, quantization=quantization, max_steps=3))
    assert outcome.code == 0, outcome.err
    assert f"base in {quantization}" in outcome.err


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_validation_changes_nothing_of_the_training(
    run_lorafit, train_arguments, tiny_model, tmp_path, quantization
):
    # bitsandbytes repacks 4-bit weights in evaluation mode on some CPUs, where 64 divides them.
    model = tiny_model(hidden_size=64, intermediate_size=128)
    losses = []
    for every in (1, 6):
        run_dir = tmp_path / f"run-{every}"
        arguments = train_arguments(
            run_dir, model=model, quantization=quantization, eval_steps=every
        )
        assert run_lorafit(*arguments).code == 0
        losses.append([(e["loss"], e["grad_norm"]) for e in read_events(run_dir)])
    assert losses[0] == losses[1]


def test_label_smoothing_and_no_clipping_train(run_lorafit, train_arguments, tmp_path):
    outcome = run_lorafit(
        *train_arguments(tmp_path / "run", label_smoothing_factor=0.1, max_grad_norm=0, max_steps=2)
    )
    assert outcome.code == 0, outcome.err
    assert read_events(tmp_path / "run")[0]["grad_norm"] > 0
