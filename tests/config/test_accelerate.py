"""What `accelerate launch` was configured for, as settings: DeepSpeed's keys and its variables."""

import json

import pytest

from lorafit.config.accelerate import accelerate_layer
from lorafit.config.deepspeed import deepspeed_outcome
from lorafit.config.layers import flags_layer
from lorafit.config.outcomes import Carried, Kept, Lost
from lorafit.config.resolve import resolve_run
from lorafit.errors import ConfigError
from lorafit.hardware.detect import planned_device

ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "no"}


def resolve(environ, preset=None, **flags):
    return resolve_run(
        preset=preset, config_file=None, overrides=(), flags=flags, environ=environ,
        device=planned_device("a100-80gb"),
    )  # fmt: skip


def values(environ):
    return {name: given.value for name, given in accelerate_layer(environ, ()).layer.values.items()}


@pytest.mark.parametrize(
    ("stage", "parallelism"), [("0", "ddp"), ("1", "ddp"), ("2", "ddp"), ("3", "fsdp")]
)
def test_a_zero_stage_says_what_becomes_of_the_base_weights(stage, parallelism):
    resolved = resolve({**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage})
    assert resolved.settings.parallelism == parallelism
    assert resolved.zero_stage == int(stage)
    assert "ACCELERATE_DEEPSPEED_ZERO_STAGE" in str(resolved.origins["parallelism"])


def test_without_a_stage_it_is_that_of_accelerate():
    resolved = resolve(ZERO)
    assert (resolved.settings.parallelism, resolved.zero_stage) == ("ddp", 2)


def test_one_process_shares_nothing_and_is_told_so():
    resolved = resolve({**ZERO, "WORLD_SIZE": "1", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"})
    assert (resolved.settings.parallelism, resolved.zero_stage) == ("auto", None)
    assert any("one process shares nothing" in warning for warning in resolved.warnings)


@pytest.mark.parametrize(
    ("strategy", "parallelism"),
    [("FULL_SHARD", "fsdp"), ("SHARD_GRAD_OP", "fsdp"), ("1", "fsdp"), ("NO_SHARD", "ddp"),
     ("3", "ddp")],
)  # fmt: skip
def test_accelerates_fsdp_shares_the_weights_as_its_strategy_says(strategy, parallelism):
    asked = {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2", "FSDP_SHARDING_STRATEGY": strategy}
    resolved = resolve(asked)
    assert (resolved.settings.parallelism, resolved.zero_stage) == (parallelism, None)
    assert resolve({**asked, "WORLD_SIZE": "1"}).settings.parallelism == "auto"
    assert resolve({**asked, "FSDP_ACTIVATION_CHECKPOINTING": "true"}).is_explicit(
        "gradient_checkpointing"
    )
    with pytest.raises(ConfigError, match=r"FSDP_OFFLOAD_PARAMS: cpu is not done here"):
        resolve({**asked, "FSDP_OFFLOAD_PARAMS": "true"})


def test_its_settings_outweigh_a_preset_and_have_an_origin():
    asked = {
        **ZERO, "ACCELERATE_GRADIENT_CLIPPING": "0.25", "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3",
    }  # fmt: skip
    resolved = resolve(asked, preset="balanced")
    settings = resolved.settings
    assert (settings.max_grad_norm, settings.gradient_accumulation_steps) == (0.25, 3)
    assert settings.compute_dtype == "bfloat16"
    assert "ACCELERATE_GRADIENT_CLIPPING" in str(resolved.origins["max_grad_norm"])
    assert resolved.is_explicit("gradient_accumulation_steps")


def test_a_setting_that_contradicts_the_launcher_is_refused_with_both_places():
    asked = {**ZERO, "ACCELERATE_GRADIENT_CLIPPING": "1.0"}
    assert resolve(asked, max_grad_norm="1").settings.max_grad_norm == 1.0
    with pytest.raises(ConfigError) as refusal:
        resolve(asked, max_grad_norm="0.3")
    (problem,) = refusal.value.problems
    assert refusal.value.exit_code == 2
    assert problem.where.startswith("max_grad_norm (flag --max-grad-norm)")
    assert "ACCELERATE_GRADIENT_CLIPPING" in problem.where
    assert problem.message == "they are 0.3 and 1"


def test_what_accelerate_always_says_is_no_wish():
    launched = accelerate_layer({"ACCELERATE_MIXED_PRECISION": "no"}, [flags_layer({"seed": "1"})])
    assert (dict(launched.layer.values), launched.layer.problems) == ({}, ())
    assert values({"ACCELERATE_USE_DEEPSPEED": "false"}) == {}


def test_its_compiler_has_no_effect_and_that_is_said():
    asked = {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    assert any("ACCELERATE_DYNAMO_BACKEND" in warning for warning in resolve(asked).warnings)
    assert resolve({"ACCELERATE_DYNAMO_BACKEND": "NO"}).warnings == resolve({}).warnings


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        (
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
            "cpu",
            "optimizer state is that of the adapter",
        ),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "--quantization nf4"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "4", "stages 0, 1, 2 and 3"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "use bf16, fp16 or no"),
    ],
)
def test_what_lorafit_does_not_do_is_refused_with_the_reason(variable, value, reason):
    with pytest.raises(ConfigError) as refusal:
        resolve({**ZERO, variable: value})
    (problem,) = refusal.value.problems
    assert variable in problem.where
    assert problem.message.startswith(f"{value} is ")
    assert reason in f"{problem.message}; {problem.hint}"


def test_a_deepspeed_file_gives_the_settings_that_it_names(tmp_path):
    path = tmp_path / "zero3.json"
    path.write_text(
        json.dumps(
            {
                "train_batch_size": 32, "train_micro_batch_size_per_gpu": "auto",
                "gradient_clipping": 0.5, "bf16": {"enabled": True}, "fp16": {"enabled": False},
                "zero_optimization": {
                    "stage": 3, "overlap_comm": True, "offload_param": {"device": "none"},
                    "stage3_gather_16bit_weights_on_model_save": True,
                },
                "optimizer": {"type": "AdamW", "params": {"lr": 2e-4, "betas": [0.9, 0.999]}},
                "steps_per_print": 10, "elasticity": {"enabled": True},
            },
            indent=1,
        )
    )  # fmt: skip
    resolved = resolve({**ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)})
    settings = resolved.settings
    assert (settings.effective_batch_size, settings.max_grad_norm) == (32, 0.5)
    assert (settings.compute_dtype, settings.parallelism) == ("bfloat16", "fsdp")
    assert (settings.learning_rate, settings.optim) == (2e-4, "adamw_torch")
    assert str(resolved.origins["max_grad_norm"]) == f"{path}:4 (gradient_clipping)"
    (warning,) = (text for text in resolved.warnings if "zero3.json" in text)
    assert "(elasticity.enabled): it has no effect" in warning


def test_a_deepspeed_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.json: the file cannot be read"):
        resolve({**ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "gone.json")})


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("zero_optimization.stage", "auto", Kept),
        ("gradient_clipping", "auto", Kept),
        ("gradient_clipping", 1.0, Carried),
        ("zero_optimization.reduce_bucket_size", 5e8, Kept),
        ("zero_optimization.zero_quantized_weights", False, Kept),
        ("zero_optimization.zero_quantized_weights", True, Lost),
        ("scheduler.type", "WarmupLR", Lost),
        ("scheduler.params.warmup_num_steps", 100, Kept),
        ("optimizer.type", "Lamb", Lost),
        ("optimizer.params.adam_w_mode", False, Lost),
        ("optimizer.params.eps", 1e-6, Lost),
        ("fp16.initial_scale_power", 16, Kept),
        ("tensorboard.enabled", True, Kept),
        ("compression_training.layer_reduction", {}, Kept),
    ],
)
def test_every_key_is_carried_kept_or_lost(key, value, kind):
    assert isinstance(deepspeed_outcome(key, value), kind)
