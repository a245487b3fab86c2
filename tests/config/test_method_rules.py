import pytest

from lorafit.config.method_rules import method_conflicts, turned_by_method
from lorafit.config.rules import find_warnings
from lorafit.config.schema import Settings


def conflicts(explicit: dict[str, object], **others: object) -> list[str]:
    settings = Settings(**explicit, **others)
    found = method_conflicts(settings, explicit.__contains__)
    return [f"{', '.join(names)}: {message}" for names, message, _ in found]


@pytest.mark.parametrize(
    ("name", "value"), [("num_generations", 4), ("temperature", 0.7), ("beta", 0.1)]
)
def test_settings_of_reinforcement_learning_are_refused_for_sft(name, value):
    (message,) = conflicts({name: value})
    assert message.startswith(f"{name}: only method grpo")
    assert "the method is sft" in message


def test_dpo_takes_beta_and_refuses_what_only_grpo_has():
    assert conflicts({"method": "dpo", "beta": 0.2}) == []
    (message,) = conflicts({"method": "dpo", "num_generations": 4})
    assert "only method grpo has it, and the method is dpo" in message


def test_grpo_needs_room_for_a_prompt():
    options = {"method": "grpo", "reward_functions": "r.py", "max_completion_length": 64}
    (message,) = conflicts(options, max_length=64)
    assert "leave no room for a prompt in max_length 64" in message


def test_a_setting_that_grpo_does_not_use_is_refused_where_it_was_asked_for():
    asked = {"method": "grpo", "reward_functions": "r.py", "packing": True}
    assert conflicts(asked) == ["packing: method grpo does not use it: it would have no effect"]


def test_supervised_training_is_left_as_it_is():
    assert turned_by_method(Settings()) == {}
    assert turned_by_method(Settings(method="dpo"))["lora_dropout"].value == 0


def warnings(explicit: dict[str, object]) -> list[str]:
    found = find_warnings(Settings(**explicit), explicit.__contains__)
    return [f"{', '.join(finding.settings)}: {finding.message}" for finding in found]


def test_the_rate_of_sft_is_worth_a_word_under_another_method():
    (warning,) = warnings({"method": "dpo"})
    assert warning == (
        "learning_rate, method: 0.0002 is a rate for sft; method dpo takes less: begin with 1e-05"
    )
    assert warnings({"method": "sft"}) == []


@pytest.mark.parametrize(
    ("rate", "consequence"),
    [(1e-5, None), (1e-6, None), (5e-7, "learning is slow"), (2e-4, "leave what it has learnt")],
)
def test_rates_of_dpo_are_held_against_its_own_range(rate, consequence):
    found = warnings({"method": "dpo", "learning_rate": rate})
    assert len(found) == (consequence is not None)
    for warning in found:
        assert "is outside the recommended 1e-06 to 5e-05" in warning
        assert str(consequence) in warning
