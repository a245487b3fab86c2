"""Flags of other tools are refused with the name that they have here."""

import pytest

from lorafit.cli.foreign_flags import _hint
from lorafit.config.foreign import HF_RULES
from lorafit.config.names import USUAL_NAMES
from lorafit.config.schema import Settings

FLAGS = dict.fromkeys(f"--{name.replace('_', '-')}" for name in Settings.model_fields)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (["--lr", "1e-4"], "here it is --learning-rate"),
        (["--bf16"], "here it is --compute-dtype bfloat16"),
        (["--load_in_4bit=true"], "here it is --quantization nf4"),
        (["--model_name_or_path", "x"], "here it is --model"),
        (["--config_file", "x.json"], "here it is --config"),
        (["--resume_from_checkpoint", "x"], "here it is --resume"),
        (["--optimizer", "adamw"], "here it is --optim adamw_torch|"),
        (["--push_to_hub"], "lorafit export RUN --push OWNER/NAME"),
        (["--use-liger-kernel"], "leave it out: lorafit has kernels of its own"),
    ],
)
def test_a_flag_of_another_tool_is_named_as_it_is_here(run_lorafit, typed, hint):
    outcome = run_lorafit("train", *typed, "--data", "x.jsonl")
    assert outcome.code == 2
    flag = typed[0].partition("=")[0].replace("_", "-")
    assert f"error: lorafit train has no flag {flag}\nhint: " in outcome.err
    assert hint in outcome.err


def test_a_misspelt_flag_of_our_own_keeps_its_suggestions(run_lorafit):
    outcome = run_lorafit("train", "--lora-rnk", "8")
    assert outcome.code == 2
    assert "Possible options" in outcome.err
    assert "--lora-rank" in outcome.err


def test_a_value_that_looks_like_a_foreign_flag_is_a_value(run_lorafit):
    outcome = run_lorafit("schedule", "--prompt-template", "--lr", "--rows", "100")
    assert "(flag --prompt-template): it is set and completion_template is not" in outcome.err
    assert "has no flag" not in outcome.err


def test_a_command_without_settings_knows_no_settings_of_others(run_lorafit):
    outcome = run_lorafit("export", "--push-to-hub", "me/mine")
    assert outcome.code == 2
    assert "--push" in outcome.err
    assert "uploads nothing" not in outcome.err


@pytest.mark.parametrize("name", sorted(HF_RULES.keys() | USUAL_NAMES))
def test_every_name_of_another_tool_has_a_hint(name):
    hint = _hint(f"--{name.replace('_', '-')}", FLAGS)
    assert hint is not None
    assert hint.startswith(("here it is --", "leave it out: "))
