from dataclasses import replace

import pytest

from lorafit.config.resolve import resolve_run
from lorafit.errors import MemoryFitError
from lorafit.hardware.detect import detect_device
from lorafit.training.planning import fit
from lorafit.training.planning.plan import plan_run

pytestmark = pytest.mark.usefixtures("quiet_libraries")


@pytest.fixture
def plan(tiny_model, tiny_data, tmp_path):
    def plan(*, device=None, preset=None, options=None, **flags):
        device = device or detect_device("cpu")
        given = {
            "model": str(tiny_model("phi")),
            "data": str(tiny_data),
            "max_length": "64",
            "output_dir": str(tmp_path / "run"),
            "device": "cpu",
            **flags,
        }
        resolved = resolve_run(
            preset=preset, config_file=None, overrides=(), flags=given, environ={}, device=device
        )
        return plan_run(resolved, device, **(options or {}))

    return plan


def smaller(plan, by=1):
    """The plan's device with less memory than the plan takes."""
    return replace(plan.device, usable_bytes=plan.estimate.peak.process_bytes - by)


def test_a_run_that_takes_one_byte_too_many_is_refused_with_both_numbers(plan):
    roomy = plan()
    roomy.require_fit()
    narrow = plan(device=smaller(roomy))
    assert narrow.estimate.verdict == "exceeds"
    with pytest.raises(MemoryFitError, match="would run out of memory") as refusal:
        narrow.require_fit()
    assert "--allow-oom-attempt" in str(refusal.value.hint)
    assert refusal.value.exit_code == 4


def test_the_refusal_names_the_flags_of_a_plan_that_fits(plan):
    big = {"per_device_train_batch_size": "16", "gradient_accumulation_steps": "1"}
    roomy = plan(**big)
    one = plan(per_device_train_batch_size="1", gradient_accumulation_steps="16")
    between = (roomy.estimate.peak.process_bytes + one.estimate.peak.process_bytes) // 2
    device = replace(roomy.device, usable_bytes=between)
    with pytest.raises(MemoryFitError) as refusal:
        plan(device=device, **big).require_fit()
    words = str(refusal.value.hint).split()
    micro = int(words[words.index("--per-device-train-batch-size") + 1])
    accumulation = int(words[words.index("--gradient-accumulation-steps") + 1])
    assert micro * accumulation == 16
    assert micro < 16 or "--gradient-checkpointing" in words


def test_whoever_allows_the_attempt_is_not_refused(plan):
    device = smaller(plan())
    plan(device=device, options={"allow_oom_attempt": True}).require_fit()


def test_tight_memory_is_a_warning(plan):
    roomy = plan()
    device = replace(roomy.device, usable_bytes=int(roomy.estimate.peak.process_bytes * 1.05))
    assert any("memory is tight" in warning for warning in plan(device=device).warnings)
    assert not any("memory is tight" in warning for warning in roomy.warnings)


def test_fit_keeps_the_effective_batch_and_says_what_it_did(plan):
    asked = plan()
    fitted = plan(options={"fit": True})
    assert fitted.batch.effective_batch_size == asked.batch.effective_batch_size == 64
    assert fitted.planner is not None
    assert "the fastest of" in fitted.reasons()["planner"]
    assert str(fitted.resolved.origins["per_device_train_batch_size"]) == "planner"
    assert asked.planner is None


def test_a_device_without_a_row_is_planned_for(plan):
    planned = plan(preset="balanced")
    assert planned.planner is not None
    assert planned.batch.effective_batch_size == 32
    chosen = plan(preset="balanced", per_device_train_batch_size="2")
    assert chosen.planner is None
    assert chosen.batch.per_device_train_batch_size == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("gradient_checkpointing", True), ("gradient_accumulation_steps", "4")],
)
def test_what_a_person_asked_for_is_not_planned_away(plan, name, value):
    asked = plan(preset="balanced", **{name: value})
    assert asked.planner is None
    assert str(getattr(asked.settings, name)) == str(value)


def test_a_default_row_with_a_micro_batch_of_its_own_is_not_planned_over(plan):
    careful = plan(preset="safe")
    assert careful.planner is None
    assert careful.batch.per_device_train_batch_size == 1
    assert careful.settings.gradient_checkpointing


def test_memory_that_others_took_meanwhile_is_seen_before_loading(plan, monkeypatch):
    ready = plan()
    ready.verify_free_memory()
    taken = replace(ready.device, free_bytes=ready.estimate.peak.process_bytes - 1)
    monkeypatch.setattr(fit, "detect_device", lambda requested: taken)
    with pytest.raises(MemoryFitError, match="are free now"):
        ready.verify_free_memory()
