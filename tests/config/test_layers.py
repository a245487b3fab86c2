import pytest

from lorafit.config.fields import SettingValue, field_rule, parse_text, show_value
from lorafit.config.layers import (
    EXPLICIT_KINDS,
    Given,
    Layer,
    LayerKind,
    environment_layer,
    flags_layer,
    overrides_layer,
    resolve_layers,
)
from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, ExitCode, Problem


def layer(kind: LayerKind, origin: str = "x", **values: object) -> Layer:
    return Layer(origin, kind, {name: Given(v, f"{kind}:1") for name, v in values.items()})


def test_no_layers_give_the_defaults_of_the_guide():
    resolved = resolve_layers([])
    assert resolved.settings == Settings()
    guide = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 8,
        "max_length": 1024,
        "learning_rate": 2e-4,
        "num_train_epochs": 20,
        "warmup_ratio": 0.05,
        "lora_r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "gradient_checkpointing": True,
        "torch_compile": True,
    }
    assert {name: getattr(resolved.settings, name) for name in guide} == guide
    assert {origin.text for origin in resolved.origins.values()} == {"default"}
    assert resolved.warnings == ()


def test_the_last_layer_wins_and_every_value_names_its_layer():
    resolved = resolve_layers(
        [
            layer("preset", "preset balanced", lora_r=8, seed=1, max_length=512),
            layer("hardware", "hardware row a10g", max_length=768),
            layer("file", "mine.yaml", seed=2),
            environment_layer({"LORAFIT_SEED": "3", "PATH": "/bin"}),
            overrides_layer(["seed=4"]),
            flags_layer({"seed": "5", "torch_compile": False}),
        ]
    )
    assert (resolved.settings.seed, resolved.settings.max_length) == (5, 768)
    shown = {name: str(origin) for name, origin in resolved.origins.items()}
    assert shown["lora_r"] == "preset balanced (preset:1)"
    assert shown["max_length"] == "hardware row a10g (hardware:1)"
    assert shown["seed"] == "flag --seed"
    assert shown["torch_compile"] == "flag --no-torch-compile"
    assert shown["lora_alpha"] == "default"


@pytest.mark.parametrize("kind", ["preset", "hardware", "file", "env", "override", "flag"])
def test_explicit_is_what_a_person_asked_for(kind):
    value = "12" if kind in ("env", "override", "flag") else 12
    resolved = resolve_layers([layer(kind, lora_r=value)])
    assert resolved.is_explicit("lora_r") == (kind in EXPLICIT_KINDS)
    assert not resolved.is_explicit("seed")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("lora_r", "lora_r"),
        ("lora_rank", "lora_r"),
        ("lora.r", "lora_r"),
        ("lora.lora_r", "lora_r"),
        ("training.lora_rank", "lora_r"),
        ("batch.micro_batch_size", "per_device_train_batch_size"),
        ("run.num_batches", "max_steps"),
        ("model.max_seq_length", "max_length"),
    ],
)
def test_aliases_and_sections_lead_to_the_one_name(name, setting):
    resolved = resolve_layers([overrides_layer([f"{name}=16"])])
    assert getattr(resolved.settings, setting) == 16
    assert resolved.origins[setting].text == f"override {name}"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("lora.training.r", "sections do not nest", "section.setting"),
        ("lorra.r", "there is no section 'lorra'", "did you mean lora?"),
        ("lora.rr", "there is no such setting", None),
        ("optimizer", "this is a section", "write `optimizer:`"),
    ],
)
def test_a_wrong_section_is_named(name, message, hint):
    with pytest.raises(ConfigError) as caught:
        resolve_layers([overrides_layer([f"{name}=16"])])
    assert caught.value.problems[0].message.startswith(message)
    assert hint is None or hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("target_modules", "q_proj, k_proj", ("q_proj", "k_proj")),
        ("target_modules", "none", None),
        ("max_steps", "none", None),
        ("quantization", "none", "none"),
        ("learning_rate", "1", 1.0),
        ("torch_compile", "false", False),
        ("model", "some/Model", "some/Model"),
        ("report_to", "tensorboard", ("tensorboard",)),
    ],
)
def test_text_becomes_the_settings_type(name, text, value):
    parsed = parse_text(name, text)
    assert parsed == value
    assert type(parsed) is type(value)
    assert getattr(resolve_layers([flags_layer({name: text})]).settings, name) == value


def test_pefts_all_linear_is_the_default_of_the_targets():
    flag = flags_layer({"target_modules": "all-linear"})
    for layer in (flag, overrides_layer(["target_modules=all-linear"])):
        assert resolve_layers([layer]).settings.target_modules is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("torch_compile", "yes"),
        ("torch_compile", "1"),
        ("target_modules", "q_proj,,k_proj"),
        ("report_to", "neptune"),
        ("model", "a\0b"),
        ("lora_r", "none"),
        ("lora_r", " 8"),
        ("optim", "ADAMW_TORCH"),
        ("output_dir", ""),
    ],
)
def test_text_that_is_no_value_is_refused(name, text):
    with pytest.raises(ConfigError) as caught:
        resolve_layers([flags_layer({name: text})])
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.problems[0].where == f"flag --{name.replace('_', '-')}"


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_has_a_rule_that_accepts_its_default(name):
    rule = field_rule(name)
    default: SettingValue = Settings.model_fields[name].default
    text = "tensorboard" if default == () else show_value(default).strip("[]")
    assert rule.optional == (default is None)
    assert rule.kind != "number" or rule.high is not None
    assert parse_text(name, text) == (("tensorboard",) if default == () else default)


def test_problems_of_all_layers_are_raised_together():
    early = Layer("mine.yaml", "file", {}, (Problem("mine.yaml:1", "broken"),))
    with pytest.raises(ConfigError) as caught:
        resolve_layers([early, flags_layer({"lora_r": "0"}), overrides_layer(["x"])])
    assert [p.where for p in caught.value.problems] == ["mine.yaml:1", "flag --lora-r", "argument"]
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_the_exit_code_is_usage_only_without_a_file_in_it():
    for kind, code in (("env", 2), ("override", 2), ("flag", 2), ("file", 3), ("preset", 3)):
        with pytest.raises(ConfigError) as caught:
            resolve_layers([layer(kind, lora_r="zero")])
        assert caught.value.exit_code == code


@pytest.mark.parametrize("name", ["data", "output_dir", "device", "validation_data"])
@pytest.mark.parametrize("kind", ["preset", "hardware"])
def test_presets_hold_no_paths_and_devices(name, kind):
    with pytest.raises(ConfigError, match=f"{name} belongs to a machine or a person"):
        resolve_layers([layer(kind, **{name: "x"})])


def test_a_contradiction_names_both_origins():
    with pytest.raises(ConfigError) as caught:
        resolve_layers([layer("file", warmup_steps=9), flags_layer({"max_steps": "5"})])
    assert (
        caught.value.problems[0].where == "warmup_steps (file:1) and max_steps (flag --max-steps)"
    )
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_prompt_template_needs_a_completion_template():
    with pytest.raises(ConfigError, match="completion_template is not"):
        resolve_layers([layer("file", prompt_template="{premise}")])
    pair = {"prompt_template": "{premise}", "completion_template": "{label}"}
    assert resolve_layers([layer("file", **pair)]).settings.completion_template == "{label}"


def test_the_polynomial_schedule_needs_a_peak_above_its_end():
    with pytest.raises(ConfigError, match="falls to 1e-07, and the peak 1e-08 is not above"):
        resolve_layers([layer("file", lr_scheduler_type="polynomial", learning_rate=1e-8)])


def test_unknown_variables_are_refused_and_reserved_ones_ignored():
    resolve_layers([environment_layer({"LORAFIT_CACHE_DIR": "/x", "LORAFIT_FAULT": "kill"})])
    with pytest.raises(ConfigError) as caught:
        resolve_layers([environment_layer({"LORAFIT_LERNING_RATE": "1e-4"})])
    assert "LORAFIT_LERNING_RATE: there is no such setting" in str(caught.value)
    assert caught.value.hint == "did you mean learning_rate?"
    assert caught.value.exit_code == ExitCode.USAGE
