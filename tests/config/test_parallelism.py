import pytest

from lorafit.config.layers import Given, Layer, flags_layer, resolve_layers
from lorafit.config.parallelism import verify_parallelism
from lorafit.errors import ConfigError, ExitCode


def resolved(preset=None, **flags):
    values = {name: Given(value, "p.yaml:1") for name, value in (preset or {}).items()}
    return resolve_layers([Layer("preset p", "preset", values), flags_layer(flags)])


@pytest.mark.parametrize("parallelism", ["auto", "ddp"])
@pytest.mark.parametrize("num_devices", [1, 2])
def test_whole_weights_need_nothing(parallelism, num_devices):
    verify_parallelism(resolved(parallelism=parallelism, quantization="int8"), num_devices)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_weights_that_can_be_shared_are(quantization):
    verify_parallelism(resolved(parallelism="fsdp", quantization=quantization), 2)


def test_one_process_shares_with_nobody():
    with pytest.raises(ConfigError, match="and there is one") as refusal:
        verify_parallelism(resolved(parallelism="fsdp"), 1)
    (problem,) = refusal.value.problems
    assert problem.where == "parallelism (flag --parallelism)"
    assert problem.hint is not None
    assert problem.hint.startswith("--num-processes 2 or more")
    assert refusal.value.exit_code == ExitCode.USAGE


def test_a_preset_that_asks_one_process_to_share_is_bad_input():
    with pytest.raises(ConfigError) as refusal:
        verify_parallelism(resolved({"parallelism": "fsdp"}), 1)
    assert refusal.value.exit_code == ExitCode.BAD_INPUT


def test_int8_weights_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match="bitsandbytes moves int8 weights") as refusal:
        verify_parallelism(resolved(parallelism="fsdp", quantization="int8"), 4)
    assert "--quantization nf4" in str(refusal.value.problems[0].hint)
