import json
import shutil

import pytest
import torch
from tiny import write_jsonl

from lorafit.report.events import read_events

pytest.importorskip("trl", reason="the extra lorafit[rl] is not installed")


def test_the_margin_between_chosen_and_rejected_grows(run_lorafit, dpo_arguments, tmp_path):
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*dpo_arguments(run_dir, max_steps=8, save_steps=8))
    assert outcome.code == 0, outcome.err
    events = read_events(run_dir)
    # With the adapter at zero, policy and reference agree: margin 0 and loss ln 2.
    assert events[0]["reward_margin"] == pytest.approx(0, abs=1e-6)
    assert events[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert events[-1]["reward_margin"] > 0.3
    assert events[-1]["reward_accuracy"] == 1
    record = json.loads((run_dir / "run.json").read_text())
    assert "4 rows of" in record["plan"]["reasons"]["method"]


def test_the_reference_is_the_model_without_its_adapter(
    run_lorafit, dpo_arguments, tiny_model, tmp_path
):
    """Margin of a step, computed again from logits of plain transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pair = {"prompt": "the colour is", "chosen": " red", "rejected": " blue"}
    data = write_jsonl(tmp_path / "pair.jsonl", [pair])
    run_dir = tmp_path / "run"
    options = {
        "data": data, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "constant", "beta": 0.5,
    }  # fmt: skip
    assert run_lorafit(*dpo_arguments(run_dir, **options)).code == 0
    folder = tiny_model(initializer_range=0.4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = tokenizer(pair["prompt"])["input_ids"]

    def log_probability(answer: str) -> float:
        ids = [*prompt, *tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits.log_softmax(-1)
        return sum(float(scores[0, i - 1, ids[i]]) for i in range(len(prompt), len(ids)))

    reference = log_probability(" red") - log_probability(" blue")
    shutil.copy(run_dir / "adapter" / "adapter_config.json", run_dir / "checkpoint-1")
    model = PeftModel.from_pretrained(model, run_dir / "checkpoint-1").eval()
    policy = log_probability(" red") - log_probability(" blue")
    margin = read_events(run_dir)[1]["reward_margin"]
    assert margin == pytest.approx(0.5 * (policy - reference), rel=1e-3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "'rejected' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same text"),
        ({"prompt": "a", "chosen": 1, "rejected": "b"}, "'chosen' must be text"),
    ],
)
def test_a_row_that_is_no_pair_is_named_with_its_line(
    run_lorafit, dpo_arguments, tmp_path, row, message
):
    data = write_jsonl(tmp_path / "bad.jsonl", [row])
    outcome = run_lorafit(*dpo_arguments(tmp_path / "run", data=data))
    assert outcome.code == 3
    assert "bad.jsonl:1" in outcome.err
    assert message in outcome.err
