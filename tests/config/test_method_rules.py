import pytest

from lorafit.config.method_rules import method_conflicts, turned_by_method
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
