"""What people type by mistake, and the hint that says what they meant."""

import json

import pytest

from lorafit.cli.next_steps import NEXT_STEPS, next_step
from lorafit.data.kinds_hint import KINDS_HINT, kinds_hint
from lorafit.errors import AdapterError
from lorafit.model.adapter import verify_adapter

AXOLOTL = """\
base_model: microsoft/phi-2
datasets: []
val_set_size: 0.05
evals_per_epoch: 4
"""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["my.jsonl"], "--data my.jsonl"),
        (["my rows.csv"], "--data 'my rows.csv'"),
        (["my.yaml"], "--config my.yaml"),
        (["balanced"], "write key=value"),
        (["lr=1e-4"], "did you mean learning_rate?"),
        (["load_in_4bit=true"], "did you mean quantization?"),
    ],
)
def test_a_wrong_argument_of_train_says_what_to_type(run_lorafit, arguments, hint):
    outcome = run_lorafit("train", *arguments)
    assert outcome.code == 2
    assert hint in outcome.err


def test_a_file_of_another_tool_is_sent_to_convert_once(run_lorafit, tmp_path):
    file = tmp_path / "axolotl.yml"
    file.write_text(AXOLOTL)
    outcome = run_lorafit("train", "--config", file)
    assert outcome.code == 3
    hints = outcome.err.partition("hint: ")[2].splitlines()
    assert len(hints) == 1
    assert f"lorafit config convert {file}" in hints[0]
    assert run_lorafit("config", "convert", file).code == 0


def test_two_wrong_names_are_typing_errors_and_not_another_tool(run_lorafit, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rat: 1e-4\nmax_lenght: 512\n")
    outcome = run_lorafit("train", "--config", file)
    assert "did you mean learning_rate?" in outcome.err
    assert "config convert" not in outcome.err


def test_a_python_file_is_converted_not_renamed(run_lorafit, tmp_path):
    file = tmp_path / "train.py"
    file.write_text("learning_rate = 1e-4\n")
    outcome = run_lorafit("train", "--config", file)
    assert outcome.code == 3
    assert f"lorafit config convert {file} --output" in outcome.err


@pytest.mark.parametrize("name", ["phi-2", "microsoft/phi2", "Phi_2"])
def test_a_model_without_its_owner_is_guessed(run_lorafit, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "my.jsonl").write_text('{"text": "a"}\n' * 20)
    outcome = run_lorafit("train", "--data", tmp_path / "my.jsonl", "--model", name)
    assert outcome.code == 3
    assert "did you mean microsoft/phi-2?" in outcome.err


def test_a_model_of_ones_own_is_not_guessed(run_lorafit, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "my.jsonl").write_text('{"text": "a"}\n' * 20)
    outcome = run_lorafit("train", "--data", tmp_path / "my.jsonl", "--model", "me/phi-2-mine")
    assert outcome.code == 3
    assert "did you mean" not in outcome.err


def test_columns_of_other_names_become_the_flags_that_read_them(run_lorafit, tmp_path):
    file = tmp_path / "faq.csv"
    file.write_text("Question,answer\nWhy?,Because.\n")
    wrong = run_lorafit("data", "inspect", file)
    assert wrong.code == 3
    flags = ["--prompt-template", "{Question}", "--completion-template", "{answer}"]
    assert '--prompt-template "{Question}" --completion-template "{answer}"' in wrong.err
    assert run_lorafit("data", "inspect", file, *flags).code == 0


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        (
            ["id", "Kunden Frage", "Antwort (final)"],
            '--prompt-template "{Kunden Frage}" --completion-template "{Antwort (final)}"',
        ),
        (
            ["ticket", "agent reply", "Customer question"],
            '--prompt-template "{Customer question}" --completion-template "{agent reply}"',
        ),
        (
            ["premise", "hypothesis", "reasoning", "label"],
            '--prompt-template "{premise}" --completion-template "{label}"',
        ),
    ],
)
def test_fields_of_any_name_become_flags_that_can_be_typed(fields, flags):
    assert kinds_hint(fields).endswith(flags)


def test_fields_that_no_flag_could_name_get_the_general_hint():
    assert kinds_hint(["$(rm)", "answer"]) == KINDS_HINT
    assert kinds_hint(["a.b", "a`b", 'a"b']) == KINDS_HINT
    assert kinds_hint([]) == KINDS_HINT


TOOL_CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "tool", "content": "blue"}],
        [{"role": "assistant", "content": "I look it up.", "tool_calls": TOOL_CALL}],
        [{"role": "assistant", "content": None, "tool_calls": TOOL_CALL}],
    ],
)
def test_turns_of_tools_are_refused_with_a_way_round(run_lorafit, tmp_path, turns):
    rows = tmp_path / "tools.jsonl"
    rows.write_text(json.dumps({"messages": [{"role": "user", "content": "Sky?"}, *turns]}) + "\n")
    outcome = run_lorafit("data", "inspect", rows)
    assert outcome.code == 3
    assert "tools.jsonl:1: message 2" in outcome.err
    assert "turns of tools are not read: write a call as the assistant's text" in outcome.err


def test_the_step_after_an_inspection_reads_the_same_rows_the_same_way():
    words = ["data", "inspect", "my rows.csv", "--prompt-template={q}", "--show-mask", "1"]
    step = next_step([*words, "--completion-template", "{a}", "--train-on-prompt"])
    assert step == (
        "lorafit train --preset balanced --dry-run --data 'my rows.csv' --prompt-template '{q}' "
        "--completion-template '{a}' --train-on-prompt"
    )


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["presets", "show", "low"], "lorafit train --preset low --data FILE --dry-run"),
        (["presets", "diff", "high", "low"], "lorafit estimate-memory --compare high,low"),
        (["config", "validate", "a b.yaml"], "lorafit train --config 'a b.yaml' --dry-run"),
        (["chat", "--model", "m"], NEXT_STEPS["chat"]),
        (["evaluate", "lora_r=8", "--data", "x"], NEXT_STEPS["evaluate"]),
    ],
)
def test_the_next_step_names_what_the_command_was_about(words, step):
    assert next_step(words) == step


def test_the_step_after_an_evaluation_names_the_run_of_the_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").mkdir()
    words = ["evaluate", "--adapter=first/adapter", "--data", "x"]
    assert next_step(words) == NEXT_STEPS["evaluate"]
    (tmp_path / "first" / "run.json").write_text("{}")
    assert next_step(words) == NEXT_STEPS["evaluate"].replace("RUN", "first")


def test_the_step_after_a_plan_for_another_machine_leaves_its_name_out():
    assert next_step(["train", "--dry-run"]) == "the same command without --dry-run"
    elsewhere = next_step(["train", "--hardware", "a10g", "--dry-run"])
    assert elsewhere == "on that machine, the same command without --hardware and --dry-run"


def test_help_keeps_brackets_and_shows_lists_plainly(run_lorafit):
    text = " ".join(run_lorafit("train", "--help").out.replace("│", " ").split())
    assert "lorafit[wandb]" in text
    assert "[tensorboard]" in text
    assert "('tensorboard'" not in text


def test_a_folder_that_is_no_run_names_the_runs_in_it(run_lorafit, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "run.json").write_text("{}")
    outcome = run_lorafit("report", tmp_path)
    assert outcome.code == 3
    assert f"runs in {tmp_path}: {tmp_path / 'first'}" in outcome.err


def test_the_adapter_of_a_run_that_has_not_ended_is_still_to_come(tmp_path):
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError) as refused:
        verify_adapter(tmp_path / "adapter")
    assert "the run has not ended" in refused.value.hint
    assert refused.value.hint.endswith(str(tmp_path / "checkpoint-10"))


@pytest.mark.parametrize("is_on", [True, False])
def test_a_plan_that_computes_twice_with_memory_to_spare_names_fit(
    run_lorafit, train_arguments, tmp_path, is_on
):
    arguments = train_arguments(tmp_path / "run", "--dry-run", gradient_checkpointing=is_on)
    outcome = run_lorafit(*arguments)
    assert outcome.code == 0
    assert ("--fit finds what is faster" in " ".join(outcome.err.split())) is is_on


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("quick_test", "quick-test"),
        ("Balanced", "balanced"),
        ("ablation1_best", "mistral-nli/ablation1-best"),
        ("mistral-nli/ablation1_best", "mistral-nli/ablation1-best"),
        ("memory-efficient", "qlora/memory-efficient"),
        ("default", "qlora/default"),
    ],
)
def test_a_preset_is_guessed_from_the_spelling_of_elsewhere(run_lorafit, name, meant):
    outcome = run_lorafit("train", "--preset", name, "--data", "x.jsonl")
    assert outcome.code == 2
    assert f"did you mean {meant}?" in outcome.err


def test_gpus_that_are_not_there_are_said_of_the_flag_that_named_them(run_lorafit, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for gpus, count in (("0,1", 2), ("0", 1)):
        outcome = run_lorafit("train", "--gpus", gpus, "--data", "x.jsonl")
        assert outcome.code == 4
        assert f"error: --gpus {gpus}: cuda cannot be used: no NVIDIA GPU" in outcome.err
        assert f"--num-processes {count} --device cpu starts {count} on the CPU" in outcome.err
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_an_unknown_section_names_the_few_that_people_write(run_lorafit):
    outcome = run_lorafit("config", "show", "reward.num_generations=2")
    assert outcome.code == 2
    assert "there is no section 'reward'" in outcome.err
    assert "dpo, grpo," in outcome.err
    assert "a setting may also stand without one: num_generations" in outcome.err
    assert "logging_and_checkpointing" not in outcome.err


def test_a_missing_situation_lists_them(run_lorafit):
    outcome = run_lorafit("presets", "recommend")
    assert outcome.code == 2
    assert '"out of memory"' in outcome.err


def test_a_data_file_that_a_file_names_is_missing_with_both_names(
    run_lorafit, tiny_model, tiny_data, tmp_path
):
    config = tmp_path / "mine.yaml"
    config.write_text(f"data: {tiny_data}\nvalidation_data: {tmp_path / 'val.jsonl'}\n")
    outcome = run_lorafit("train", "--config", config, "--model", tiny_model(), "--device", "cpu")
    assert outcome.code == 3
    assert f"error: validation_data ({config}:2): {tmp_path / 'val.jsonl'}: no such" in outcome.err
    assert "--validation-data FILE takes its place" in outcome.err


@pytest.mark.parametrize(
    ("flag", "typed", "meant"),
    [("report-to", "tensorbord", "tensorboard"), ("lr-scheduler-type", "cosinus", "cosine")],
)
def test_a_misspelt_choice_is_guessed(run_lorafit, flag, typed, meant):
    outcome = run_lorafit("config", "show", f"--{flag}", typed)
    assert outcome.code == 2
    assert f"'{typed}' is not one of " in outcome.err
    assert f"hint: did you mean {meant}?" in outcome.err
