import pytest

from lorafit.memory.architecture import read_architecture
from lorafit.training.rl.memory import generation_memory

PHI2 = {
    "model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 51200,
}  # fmt: skip


def test_the_cache_of_phi_2_is_320_kib_a_token():
    writing = generation_memory(read_architecture(PHI2), rows=8, tokens=512, bytes_per_number=2)
    # 2 x 32 layers x 32 heads x 80 numbers x 2 bytes = 327,680 bytes a token, and half a layer's
    # share again while the cache of one layer's keys is copied.
    assert writing.cache_bytes == 8 * 512 * (327_680 + 327_680 // 64)
    assert writing.logits_bytes == 2 * 4 * 8 * 51_200


def test_grouped_heads_make_the_cache_smaller_by_their_number():
    grouped = {**PHI2, "model_type": "llama", "num_key_value_heads": 8}
    small, large = (
        generation_memory(read_architecture(c), rows=4, tokens=128, bytes_per_number=2)
        for c in (grouped, PHI2)
    )
    assert small.cache_bytes == large.cache_bytes / 4


@pytest.mark.parametrize("generations", [4, 8])
def test_the_plan_counts_every_answer_of_a_prompt(
    run_lorafit, grpo_arguments, tmp_path, generations
):
    pytest.importorskip("trl", reason="the extra lorafit[rl] is not installed")
    import json

    outcome = run_lorafit(
        *grpo_arguments(tmp_path / "run", "--dry-run", "--json", num_generations=generations)
    )
    assert outcome.code == 0, outcome.err
    reason = json.loads(outcome.out)["reasons"]["method"]
    assert f"a training step on {2 * generations} rows of" in reason
    assert "of keys and values" in reason


def test_the_planner_keeps_the_effective_batch_of_prompts(run_lorafit, grpo_arguments, tmp_path):
    pytest.importorskip("trl", reason="the extra lorafit[rl] is not installed")
    import json

    outcome = run_lorafit(*grpo_arguments(tmp_path / "run", "--dry-run", "--json", "--fit"))
    assert outcome.code == 0, outcome.err
    plan = json.loads(outcome.out)
    assert plan["batch"]["effective_batch_size"] == 4
    assert plan["batch"]["per_device_train_batch_size"] == 4
    assert "micro-batch 4 (16 rows a step) without checkpointing" in plan["reasons"]["planner"]


def test_estimate_memory_counts_the_answers_without_the_extra(run_lorafit, tiny_model):
    import json

    def peak(*more: object) -> tuple[int, list[str]]:
        outcome = run_lorafit(
            "estimate-memory", "--model", tiny_model(), "--hardware", "t4", "--max-length", 64,
            "--json", *(more or ("--per-device-train-batch-size", 4)),
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        document = json.loads(outcome.out)
        return document["peak"]["allocated_bytes"], document["reasons"]

    grpo = ("--per-device-train-batch-size", 2, "--method", "grpo")
    grpo = (*grpo, "--max-completion-length", 16, "--num-generations")
    small, large = peak(*grpo, 4), peak(*grpo, 8)
    assert small[0] < large[0]
    assert any("16 rows of 64 tokens, 8 answers to each of 2 prompts" in r for r in large[1])
    # The step of two pairs is that of four rows.
    two = ("--per-device-train-batch-size", 2)
    pairs, rows = peak("--method", "dpo", *two), peak()
    assert pairs[0] == rows[0]
