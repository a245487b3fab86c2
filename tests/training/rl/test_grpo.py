import json
import shutil
import signal
import time
from statistics import fmean

import pytest
from tiny import start_lorafit

from lorafit.report.events import read_events

pytest.importorskip("trl", reason="the extra lorafit[rl] is not installed")


def test_a_run_leaves_rewards_in_its_records_and_a_plain_adapter(
    run_lorafit, grpo_arguments, tiny_model, tmp_path
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run_dir = tmp_path / "run"
    outcome = run_lorafit(*grpo_arguments(run_dir, beta=0.1))
    assert outcome.code == 0, outcome.err
    first, second = read_events(run_dir)
    assert first.keys() >= {"reward", "reward_std", "rewards", "completion_length", "grad_norm"}
    assert first["rewards"] == {"has_r": first["reward"]}
    assert 1 <= first["completion_length"] <= 6
    # Before the first update the adapter is zero: no divergence from the model without it.
    assert first["kl"] == 0
    assert second["kl"] > 0
    # 2 prompts x 2 micro-batches x 4 answers of so many tokens.
    assert first["supervised_tokens"] == pytest.approx(16 * first["completion_length"])

    record = json.loads((run_dir / "run.json").read_text())
    assert record["settings"]["lora_dropout"] == {"value": 0.0, "origin": "method grpo"}
    assert record["settings"]["method"]["value"] == "grpo"
    assert "4 answers to each of 2 prompts" in record["plan"]["reasons"]["method"]
    assert (run_dir / "report.html").is_file()
    base = AutoModelForCausalLM.from_pretrained(tiny_model(initializer_range=0.4))
    assert PeftModel.from_pretrained(base, run_dir / "adapter").peft_config["default"].r == 8
    assert list((run_dir / "tensorboard").iterdir())


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(
    run_lorafit, grpo_arguments, tmp_path
):
    # Three micro-batches an epoch, two a step: the checkpoint lies within the second epoch.
    arguments = {"max_steps": 4, "per_device_train_batch_size": 2, "beta": 0.05}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run_lorafit(*grpo_arguments(whole, **arguments)).code == 0
    shutil.copytree(whole, resumed)
    for name in ("checkpoint-4", "adapter"):
        shutil.rmtree(resumed / name)
    record = json.loads((resumed / "run.json").read_text())
    (resumed / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    outcome = run_lorafit(*grpo_arguments(resumed, **arguments))
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-3" in outcome.err
    weights = [d / "adapter" / "adapter_model.safetensors" for d in (whole, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_another_reward_file_is_another_run(run_lorafit, grpo_arguments, reward_file, tmp_path):
    run_dir = tmp_path / "run"
    assert run_lorafit(*grpo_arguments(run_dir, max_steps=1)).code == 0
    reward_file.write_text(reward_file.read_text() + "\n# changed\n")
    outcome = run_lorafit(*grpo_arguments(run_dir, max_steps=1))
    assert outcome.code == 5
    assert "reward_file_sha256" in outcome.err


def test_a_group_larger_than_the_data_is_refused_before_training(
    run_lorafit, grpo_arguments, tmp_path
):
    outcome = run_lorafit(*grpo_arguments(tmp_path / "run", per_device_train_batch_size=9))
    assert outcome.code == 3
    assert "8 rows, fewer than the micro-batch of 9" in outcome.err


@pytest.mark.slow
def test_the_reward_rises_on_a_task_that_can_be_checked(run_lorafit, grpo_arguments, tmp_path):
    run_dir = tmp_path / "run"
    arguments = grpo_arguments(
        run_dir, "--lr-scheduler-type", "constant", max_steps=60, save_steps=60, num_generations=8
    )
    outcome = run_lorafit(*arguments)
    assert outcome.code == 0, outcome.err
    rewards = [event["reward"] for event in read_events(run_dir)]
    before, after = fmean(rewards[:3]), fmean(rewards[-10:])
    assert before < 0.15
    assert after > 0.4
    assert "reward " in outcome.err


@pytest.mark.slow
def test_a_terminated_run_ends_with_75_and_a_checkpoint_of_its_last_step(grpo_arguments, tmp_path):
    run_dir = tmp_path / "run"
    arguments = grpo_arguments(run_dir, max_steps=400, save_steps=400)
    with start_lorafit(*arguments) as process:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            if (run_dir / "events.jsonl").is_file() and len(read_events(run_dir)) >= 2:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        process.communicate(timeout=600)
    assert process.returncode == 75
    saved = [int(path.name.split("-")[1]) for path in run_dir.glob("checkpoint-*")]
    assert saved == [len(read_events(run_dir))]
