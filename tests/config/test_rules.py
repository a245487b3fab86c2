import pytest

from lorafit.config.layers import Given, Layer, flags_layer, resolve_layers
from lorafit.config.schema import Settings, recommended_range


def warnings(**flags: str) -> str:
    return "\n".join(resolve_layers([flags_layer(flags)]).warnings)


@pytest.mark.parametrize(
    ("name", "value", "low", "high", "consequence"),
    [
        ("per_device_train_batch_size", "2", "4", "16", "leave the device idle"),
        ("per_device_train_batch_size", "17", "4", "16", "few devices have the memory"),
        ("gradient_accumulation_steps", "3", "4", "32", "gradients noisy"),
        ("gradient_accumulation_steps", "33", "4", "32", "progress is slow to see"),
        ("learning_rate", "4e-5", "5e-05", "0.0002", "the run may end underfitted"),
        ("learning_rate", "3e-4", "5e-05", "0.0002", "training may become unstable"),
        ("warmup_ratio", "0.02", "0.03", "0.1", "may be unstable"),
        ("warmup_ratio", "0.2", "0.03", "0.1", "below the peak rate"),
        ("lora_r", "4", "8", "32", "lack the capacity"),
        ("lora_r", "64", "8", "32", "overfits sooner"),
        ("lora_dropout", "0", "0.03", "0.1", "less regularization"),
        ("lora_dropout", "0.2", "0.03", "0.1", "learning slows down"),
    ],
)
def test_a_value_outside_its_recommended_range_says_why(name, value, low, high, consequence):
    text = warnings(**{name: value})
    assert f"{name} (flag --{name.replace('_', '-')})" in text
    assert f"outside the recommended {low} to {high}: " in text
    assert consequence in text


def test_the_ends_of_every_recommended_range_are_inside_it():
    for name in Settings.model_fields:
        advised = recommended_range(name)
        if advised is not None:
            for end in (advised.low, advised.high):
                assert "outside the recommended" not in warnings(**{name: f"{end:g}"})


def test_a_preset_is_not_warned_about():
    preset = Layer("preset p", "preset", {"lora_r": Given(64, "p.yaml:1")})
    assert resolve_layers([preset]).warnings == ()


@pytest.mark.parametrize(
    ("flags", "ratio"),
    [
        ({"lora_alpha": "15", "lora_r": "8"}, "1.88 times lora_r 8"),
        ({"lora_alpha": "33", "lora_r": "8"}, "4.12 times lora_r 8"),
        ({"lora_r": "32"}, "1 times lora_r 32"),
    ],
)
def test_alpha_away_from_two_to_four_times_the_rank_is_named(flags, ratio):
    assert f"{ratio}, and 2 to 4 times is usual" in warnings(**flags)


@pytest.mark.parametrize("alpha", ["16", "32"])
def test_alpha_of_two_to_four_times_the_rank_is_usual(alpha):
    assert warnings(lora_alpha=alpha, lora_r="8") == ""


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("num_train_epochs", {"num_train_epochs": "3", "max_steps": "10"}),
        ("warmup_ratio", {"warmup_ratio": "0.05", "warmup_steps": "3"}),
        ("warmup_steps", {"warmup_steps": "3", "lr_scheduler_type": "constant"}),
        ("double_quant", {"double_quant": "true"}),
        ("validation_split", {"validation_split": "0.2", "validation_data": "v.jsonl"}),
        ("eval_steps", {"eval_steps": "10", "validation_split": "0"}),
    ],
)
def test_a_value_without_effect_is_named(name, flags):
    assert f"{name} (flag --{name.replace('_', '-')}): it has no effect" in warnings(**flags)
    assert "no effect" not in warnings(**{name: flags[name]}, quantization="nf4")
