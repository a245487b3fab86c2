"""Samples at each validation: kept by step, true to the model, without any effect on the run."""

import json
from types import SimpleNamespace

import pytest

from lorafit.training import samples
from lorafit.training.samples import Sampler


def read(run_dir):
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]


def losses(run_dir):
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [(e["loss"], e["grad_norm"], e.get("validation_loss")) for e in map(json.loads, lines)]


def test_samples_change_nothing_of_a_run_and_are_kept_by_step(
    run_lorafit, train_arguments, tmp_path
):
    runs = {}
    for count in (0, 2):
        runs[count] = tmp_path / str(count)
        arguments = train_arguments(runs[count], sample_prompts=count, report_to="none")
        outcome = run_lorafit(*arguments)
        assert outcome.code == 0, outcome.err
    assert losses(runs[0]) == losses(runs[2])
    weights = [(run / "adapter/adapter_model.safetensors").read_bytes() for run in runs.values()]
    assert weights[0] == weights[1]
    assert not (runs[0] / "samples.jsonl").exists()
    written = read(runs[2])
    assert [row["step"] for row in written] == [3, 3, 6, 6]
    assert written[0]["prompt"] == written[2]["prompt"] != written[1]["prompt"]
    assert written[0].keys() == {"step", "prompt", "completion", "reference"}
    assert written[0]["reference"].startswith(" red")


def test_the_last_samples_are_what_the_adapter_writes(run_lorafit, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    assert run_lorafit(*train_arguments(run_dir, sample_prompts=1, report_to="none")).code == 0
    last = read(run_dir)[-1]
    outcome = run_lorafit(
        "generate", "--adapter", run_dir / "adapter", "--prompt", last["prompt"], "--json",
        "--max-new-tokens", samples.MAX_NEW_TOKENS, "--device", "cpu",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert last["completion"] in json.dumps(json.loads(outcome.out), ensure_ascii=False)


@pytest.fixture
def plan(tmp_path):
    """The part of a plan that sampling looks at."""
    record = SimpleNamespace(prompt="colour?", messages=None, completion=" red", source="a:1")
    return SimpleNamespace(
        settings=SimpleNamespace(output_dir=str(tmp_path), sample_prompts=1),
        tokenizer=None,
        pad=SimpleNamespace(token_id=0),
        data=SimpleNamespace(validation=SimpleNamespace(records=[record]), kind="prompt"),
    )


def test_samples_after_the_checkpoint_that_is_continued_from_are_dropped(plan, tmp_path):
    lines = [json.dumps({"step": step, "prompt": "p", "completion": "c"}) for step in (2, 4, 6)]
    (tmp_path / "samples.jsonl").write_text("\n".join([*lines, '{"step": 6, "pro']))
    sampler = Sampler(plan, 4)
    assert [row["step"] for row in read(tmp_path)] == [2, 4]
    assert sampler.failure is None


def test_a_failure_costs_the_samples_only(plan, tmp_path, monkeypatch):
    def refuse(self, model):
        raise RuntimeError("CUDA out of memory\nlong story")

    monkeypatch.setattr(Sampler, "_generate", refuse)
    sampler = Sampler(plan, 0)
    sampler.write(None, 2)
    sampler.write(None, 4)
    assert sampler.failure == "CUDA out of memory"
    assert not (tmp_path / "samples.jsonl").exists()


def test_rows_without_a_prompt_give_no_samples(plan, tmp_path):
    plan.data.validation.records[0].prompt = None
    Sampler(plan, 0).write(None, 2)
    assert not (tmp_path / "samples.jsonl").exists()
