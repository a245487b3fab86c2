"""Reward files that cannot be used: each ends with exit code 3 and the line, never a traceback."""

import pytest

from lorafit.config.schema import is_preset_setting
from lorafit.training.rl.rewards import RewardFile, load_reward_functions

HEAD = "def give(prompts, completions, **fields):\n"


@pytest.fixture
def needs_trl():
    pytest.importorskip("trl", reason="the extra lorafit[rl] is not installed")


@pytest.mark.usefixtures("needs_trl")
@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("def give(:\n", 1, "is not Python"),
        ("x = 1\n", None, "defines no function"),
        ("def give(**fields): ...\n\nraise OSError('no disk')\n", 3, "OSError: no disk"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(
    run_lorafit, grpo_arguments, reward_file, tmp_path, text, line, message
):
    reward_file.write_text(text)
    outcome = run_lorafit(*grpo_arguments(tmp_path / "run"))
    assert outcome.code == 3
    assert message in outcome.err
    assert f"{reward_file}:{line}" in outcome.err if line else str(reward_file) in outcome.err


@pytest.mark.usefixtures("needs_trl")
def test_a_function_that_is_not_in_the_file_is_refused_with_those_that_are(
    run_lorafit, grpo_arguments, reward_file, tmp_path
):
    named = f"{reward_file}:has_r,missing"
    outcome = run_lorafit(*grpo_arguments(tmp_path / "run", reward_functions=named))
    assert outcome.code == 3
    assert "has no function missing; it has has_r" in outcome.err


@pytest.mark.usefixtures("needs_trl")
def test_a_dry_run_reads_the_file_and_does_not_run_it(
    run_lorafit, grpo_arguments, reward_file, tmp_path
):
    mark = tmp_path / "was-run"
    reward_file.write_text(f"open({str(mark)!r}, 'w').close()\n{HEAD}    return []\n")
    outcome = run_lorafit(*grpo_arguments(tmp_path / "run", "--dry-run"))
    assert outcome.code == 0, outcome.err
    assert not mark.exists()


@pytest.mark.usefixtures("needs_trl")
@pytest.mark.parametrize(
    ("body", "line", "message"),
    [
        ("    return [1.0]", 1, "1 rewards for 8 completions"),
        ("    return [float('nan')] * 8", 1, "nan for completion 1 of 8"),
        ("    return 'good'", 1, "not a list of numbers"),
        ("    x = 1\n    return x / 0", 3, "ZeroDivisionError"),
    ],
)
def test_a_reward_that_cannot_be_used_stops_the_run_at_once(
    run_lorafit, grpo_arguments, reward_file, tmp_path, body, line, message
):
    reward_file.write_text(f"{HEAD}{body}\n")
    outcome = run_lorafit(*grpo_arguments(tmp_path / "run"))
    assert outcome.code == 3
    assert message in outcome.err
    assert f"{reward_file}:{line}" in outcome.err


def test_a_function_gets_prompts_completions_and_fields_and_nothing_of_the_trainer(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(
        "def give(**given):\n"
        "    assert set(given) == {'prompts', 'completions', 'answer'}, sorted(given)\n"
        "    return [1, 2]\n"
    )
    (give,) = load_reward_functions(RewardFile(path, ("give",), {"give": 1}, ""))
    found = give(
        prompts=["a", "a"], completions=["b", "c"], answer=["d", "d"], trainer_state=object(),
        completion_ids=[[1], [2]], log_extra=print, log_metric=print,
    )  # fmt: skip
    assert found == [1.0, 2.0]


def test_the_file_is_never_run_for_another_method(
    run_lorafit, train_arguments, reward_file, tmp_path
):
    mark = tmp_path / "was-run"
    reward_file.write_text(f"open({str(mark)!r}, 'w').close()\n")
    outcome = run_lorafit(*train_arguments(tmp_path / "run"), "--reward-functions", reward_file)
    assert outcome.code == 2
    assert "only method grpo has it, and the method is sft" in outcome.err
    assert not mark.exists()


@pytest.mark.usefixtures("needs_trl")
@pytest.mark.parametrize("place", ["file", "environment"])
def test_only_the_command_line_can_name_code(
    run_lorafit, grpo_arguments, reward_file, tmp_path, monkeypatch, place
):
    mark = tmp_path / "was-run"
    reward_file.write_text(f"open({str(mark)!r}, 'w').close()\n{HEAD}    return []\n")
    arguments = grpo_arguments(tmp_path / "run", reward_functions=None)
    config = tmp_path / "mine.yaml"
    if place == "file":
        config.write_text(f"reward_functions: {reward_file}\n")
        arguments += ["--config", str(config)]
    else:
        monkeypatch.setenv("LORAFIT_REWARD_FUNCTIONS", str(reward_file))
    outcome = run_lorafit(*arguments)
    assert outcome.code == 2
    assert "only where the command line itself names it" in outcome.err
    assert not mark.exists()


@pytest.mark.usefixtures("needs_trl")
def test_grpo_without_a_reward_is_refused(run_lorafit, grpo_arguments, tmp_path):
    outcome = run_lorafit(*grpo_arguments(tmp_path / "run", reward_functions=None))
    assert outcome.code == 2
    assert "no reward function is named" in outcome.err


def test_no_preset_may_name_code():
    assert not is_preset_setting("reward_functions")


@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_without_the_extra_the_error_says_how_to_install_it(
    run_lorafit, grpo_arguments, dpo_arguments, tmp_path, monkeypatch, method
):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "trl" else found(name)
    )
    make = grpo_arguments if method == "grpo" else dpo_arguments
    outcome = run_lorafit(*make(tmp_path / "run"))
    assert outcome.code == 2
    assert "trl, which is not installed" in outcome.err
    assert 'pip install "lorafit[rl]"' in outcome.err
