"""How long a run is said to take before it starts, and what a finished one leaves for the next."""

import json
import re
from dataclasses import replace

import pytest
from tiny import write_jsonl

from lorafit.config.resolve import resolve_run
from lorafit.hardware.detect import detect_device, planned_device
from lorafit.report.events import read_events
from lorafit.report.flops import count_step_flops
from lorafit.report.pace import Pace
from lorafit.training.planning.fit import model_config
from lorafit.training.planning.plan import plan_run
from lorafit.training.timing.duration import (
    Duration,
    NotKnown,
    estimate_duration,
    measured_speed,
    remember_speed,
)
from lorafit.training.timing.duration_record import Speed, add_speed, key_of, read_speeds
from lorafit.training.timing.duration_work import work_of
from lorafit.units import format_about

pytestmark = pytest.mark.usefixtures("quiet_libraries")


@pytest.fixture(autouse=True)
def _own_speeds(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lorafit.training.timing.duration_record.cache_folder", lambda: tmp_path / "cache"
    )


@pytest.fixture(scope="module")
def plan(tiny_model, tmp_path_factory):
    """Return a factory of plans, each made once: 64 rows of equal length, 32 of them a step."""
    folder, made = tmp_path_factory.mktemp("plans"), {}

    def build(device, num_rows, num_devices, flags):
        rows = [{"prompt": f"{i:04d}", "completion": " blue" * 20} for i in range(num_rows)]
        data = write_jsonl(folder / f"rows-{num_rows}.jsonl", rows)
        given = {
            "model": str(tiny_model("phi")), "data": str(data), "validation_split": "0",
            "max_length": "64", "num_train_epochs": "1", "per_device_train_batch_size": "4",
            "gradient_accumulation_steps": "8", "device": "cpu", "sample_prompts": "0",
            "gradient_checkpointing": False, "output_dir": str(folder / "run"), **flags,
        }  # fmt: skip
        resolved = resolve_run(
            preset=None, config_file=None, overrides=(), flags=given, environ={}, device=device
        )
        return plan_run(resolved, device, num_devices=num_devices)

    def make(*, device=None, num_rows=64, num_devices=1, **flags):
        device = device or detect_device("cpu")
        key = (device.name, num_rows, num_devices, *sorted(flags.items()))
        if key not in made:
            made[key] = build(device, num_rows, num_devices, flags)
        return made[key]

    return make


def speed(**changes):
    values = {
        "measured_at": "2026-01-02T03:04:05+00:00", "num_steps": 10, "micro_batch": 4,
        "row_tokens": 22.0, "tokens_per_second": 1e4, "flops_per_second": 1e9,
        "first_step_seconds": 2.0, "startup_seconds": 3.0,
        "validation_flops_per_second": None, "sampling_seconds": None, "save_seconds": 0.5,
        "ending_seconds": 1.0,
    }  # fmt: skip
    return Speed(**{**values, **changes})


# -- The work ------------------------------------------------------------------------------


def test_tokens_are_those_of_the_data_over_all_epochs_and_halved_by_half_the_steps(plan):
    whole = plan(num_train_epochs="3")
    counted = whole.data.report.train_counts.tokens
    assert work_of(whole).tokens == 3 * counted
    assert work_of(whole).num_steps == 6
    assert work_of(whole, first_step=3).tokens == pytest.approx(1.5 * counted, abs=1)
    assert work_of(plan(max_steps="1")).tokens == pytest.approx(counted / 2, abs=1)


def test_operations_are_those_of_the_step_with_its_padding(plan):
    padded = plan(padding_free="false", num_rows=64)
    work, counts = work_of(padded), padded.data.report.train_counts
    length = counts.tokens // counts.rows
    computed = 64 * (-(-length // 8) * 8)
    flops = count_step_flops(
        padded.settings, model_config(padded.source), padded.model.num_trainable_parameters
    )
    expected = flops.of(computed, counts.supervised_tokens, computed * (computed / 64))
    assert work.flops == pytest.approx(expected)
    assert work.micro_batches == 16
    assert work.flops / work.tokens == pytest.approx(work.flops_per_token)


def test_rows_end_to_end_compute_only_the_rounding_of_a_micro_batch_beside_them(plan):
    ready = plan(padding_free="true")
    counts = ready.data.report.train_counts
    assert counts.tokens == 64 * 25
    flops = count_step_flops(
        ready.settings, model_config(ready.source), ready.model.num_trainable_parameters
    )
    # Of the 32 rows of a step, five go into the 128 tokens of a micro-batch, and two are left.
    computed = 2 * (6 * 128 + 64)
    expected = flops.of(computed, counts.supervised_tokens, counts.tokens * 25)
    assert work_of(ready).micro_batches == 2 * 7
    assert work_of(ready).flops == pytest.approx(expected)


def test_layers_computed_again_are_counted(plan):
    once, twice = work_of(plan()), work_of(plan(gradient_checkpointing=True))
    assert 1.2 * once.flops < twice.flops < 1.6 * once.flops


def test_validations_and_checkpoints_that_are_left_are_counted(plan):
    changes = {"validation_split": "0.25", "eval_steps": "2", "save_steps": "4"}
    split = plan(num_train_epochs="5", **changes)
    assert split.schedule.total_steps == 10
    assert (work_of(split).num_validations, work_of(split).num_saves) == (5, 3)
    assert (work_of(split, 4).num_validations, work_of(split, 4).num_saves) == (3, 2)
    assert work_of(split).validation_flops > 0
    assert work_of(plan()).num_validations == 0


def test_several_devices_share_the_work_and_not_its_amount(plan):
    padded = {"padding_free": "false", "gradient_accumulation_steps": "4"}
    alone = work_of(plan(per_device_train_batch_size="8", **padded))
    shared = work_of(plan(num_devices=2, **padded))
    assert (shared.tokens, shared.num_steps) == (alone.tokens, alone.num_steps)
    assert shared.flops == pytest.approx(alone.flops)
    assert shared.micro_batches == 2 * alone.micro_batches


# -- Arithmetic ----------------------------------------------------------------------------


def test_a_cpu_is_measured_and_the_range_stands_around_the_middle(plan):
    found = estimate_duration(plan())
    assert isinstance(found, Duration)
    assert found.basis == "arithmetic"
    assert 0 < found.low_seconds < found.seconds < found.high_seconds
    assert "measured: products of 1024 rows" in found.reason
    assert "by arithmetic" in found.line()


def test_a_gpu_of_the_catalog_is_known_by_its_figure_and_twice_the_work_takes_twice(plan):
    a10g = planned_device("a10g")
    one, two = (estimate_duration(plan(device=a10g, num_rows=n)) for n in (64, 128))
    assert "the vendor's dense figure" in one.reason
    assert "70 TFLOP/s" in one.reason
    assert two.parts.steps == pytest.approx(2 * one.parts.steps)
    assert two.parts.startup == one.parts.startup


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (replace(planned_device("a10g"), catalog_key=None, name="GPU X"), "GPU X is not in the"),
        (planned_device("t4"), "no float32 rate of NVIDIA T4"),
        (planned_device("cpu"), "this one is planned for"),
    ],
)
def test_a_device_without_a_rate_is_not_guessed(plan, device, words):
    found = estimate_duration(plan(device=device, compute_dtype="float32"))
    assert isinstance(found, NotKnown)
    assert found.line().startswith("not known: ")
    assert words in found.line()
    assert found.as_dict()["seconds"] is None
    assert found.as_results()["predicted_duration_seconds"] is None


# -- Earlier runs --------------------------------------------------------------------------


def test_an_earlier_run_of_this_batch_tells_every_part(plan):
    ready = plan(save_steps="1")
    work = work_of(ready)
    assert add_speed(key_of(ready), speed(row_tokens=work.row_tokens)) is None
    found = estimate_duration(ready)
    assert found.basis == "measured"
    expected = 3.0 + 2.0 + work.flops / 1e9 + work.num_saves * 0.5 + 1.0
    assert found.seconds == pytest.approx(expected)
    assert found.low_seconds < found.seconds < found.high_seconds
    assert "as the last run here" in found.line()
    assert "2026-01-02" in found.reason


def test_the_range_spans_what_earlier_runs_were_apart(plan):
    ready = plan()
    tokens = work_of(ready).row_tokens
    rates = (4e6, 1e6, 2e6)
    narrow = None
    for rate in rates:
        add_speed(key_of(ready), speed(row_tokens=tokens, flops_per_second=rate))
        narrow = narrow or estimate_duration(ready)
    wide = estimate_duration(ready)
    assert wide.parts.steps == pytest.approx(2 * narrow.parts.steps)
    assert wide.low_seconds == pytest.approx(narrow.low_seconds)
    assert wide.high_seconds > 2 * narrow.high_seconds


def test_a_run_of_another_length_is_carried_over_with_a_wider_range_and_said_so(plan):
    ready = plan()
    tokens = work_of(ready).row_tokens
    add_speed(key_of(ready), speed(row_tokens=4 * tokens))
    other = estimate_duration(ready)
    assert "of another batch" in other.line()
    assert "carried over by floating point operations" in other.reason
    add_speed(key_of(ready), speed(row_tokens=tokens))
    same = estimate_duration(ready)
    assert same.seconds == pytest.approx(other.seconds)
    assert other.high_seconds > same.high_seconds


@pytest.mark.parametrize(
    "changes",
    [
        {"kernels": "stock"},
        {"gradient_checkpointing": True},
        {"lora_r": "4"},
        {"compute_dtype": "bfloat16"},
        {"padding_free": "false"},
        {"optim": "sgd"},
    ],
)
def test_what_changes_the_speed_is_another_record(plan, changes):
    ready, other = plan(), plan(**changes)
    assert key_of(ready).file() != key_of(other).file()
    add_speed(key_of(ready), speed())
    assert read_speeds(key_of(other)) == ()


def test_batch_and_length_are_kept_in_one_record(plan):
    other = plan(per_device_train_batch_size="2", max_length="32", learning_rate="1e-5")
    assert key_of(plan()).file() == key_of(other).file()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"flops_per_second": 1000000000.0', '"flops_per_second": 0'),
        lambda text: text.replace('"startup_seconds": 3.0', '"startup_seconds": -1'),
        lambda text: text.replace('"startup_seconds": 3.0', '"startup_seconds": "3"'),
        lambda text: text.replace('"startup_seconds": 3.0', '"startup_seconds": NaN'),
        lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
        lambda text: text.replace('"num_devices": 1', '"num_devices": 2'),
        lambda text: "[]",
    ],
)
def test_a_damaged_record_counts_as_none_and_is_written_anew(plan, damage):
    key = key_of(plan())
    add_speed(key, speed())
    before = key.file().read_text()
    assert damage(before) != before
    key.file().write_text(damage(before))
    assert read_speeds(key) == ()
    assert add_speed(key, speed()) is None
    assert len(read_speeds(key)) == 1


def test_the_latest_speeds_are_kept(plan):
    key = key_of(plan())
    for number in range(25):
        add_speed(key, speed(num_steps=number))
    assert [one.num_steps for one in read_speeds(key)] == list(range(5, 25))


def test_a_cache_that_cannot_be_written_is_told_and_no_error(plan, tmp_path):
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "speeds").write_text("a file")
    assert "could not be stored" in add_speed(key_of(plan()), speed())


# -- From a run to the next ----------------------------------------------------------------


def test_rewards_and_preferences_are_not_predicted(plan):
    ready = plan()
    settings = ready.settings.model_copy(update={"method": "grpo"})
    asked = replace(ready, resolved=replace(ready.resolved, settings=settings))
    found = estimate_duration(asked)
    assert isinstance(found, NotKnown)
    assert "grpo" in found.line()
    assert remember_speed(asked, Pace()) is None


def test_a_run_of_too_few_steps_leaves_no_speed(plan):
    ready, pace = plan(), Pace()
    pace.num_steady, pace.steady_seconds, pace.steady_tokens = 2, 1.0, 100
    assert remember_speed(ready, pace) is None
    assert read_speeds(key_of(ready)) == ()


def test_a_speed_holds_what_the_clock_measured_per_operation(plan):
    ready, pace = plan(validation_split="0.25"), Pace()
    pace.num_steady, pace.steady_seconds, pace.steady_tokens = 4, 2.0, 1000
    pace.first_seconds, pace.startup_seconds = 3.5, 7.0
    pace.validations, pace.samplings, pace.saves = [0.5, 1.5], [0.25], []
    measured, work = measured_speed(ready, pace), work_of(ready)
    assert measured.tokens_per_second == 500
    assert measured.flops_per_second == pytest.approx(500 * work.flops_per_token)
    assert measured.first_step_seconds == 3.0
    assert measured.validation_flops_per_second == pytest.approx(work.validation_flops)
    assert (measured.sampling_seconds, measured.save_seconds) == (0.25, None)


def test_a_run_is_recorded_beside_its_prediction_and_predicts_the_next(
    run_lorafit, train_arguments, tmp_path
):
    folder = tmp_path / "first"
    first = run_lorafit(*train_arguments(folder))
    assert first.code == 0, first.err
    record = json.loads((folder / "run.json").read_text())
    planned, results = record["plan"]["duration"], record["results"]
    assert planned["basis"] == "arithmetic"
    assert results["predicted_duration_seconds"] == pytest.approx(planned["seconds"], abs=1e-3)
    # Loading the model comes before run.json's own clock starts.
    assert results["duration_seconds"] > sum(step["seconds"] for step in read_events(folder)) > 0
    ends = ("predicted", "predicted_low", "predicted_high")
    shown = [format_about(results[f"{end}_duration_seconds"]) for end in ends]
    words = "predicted {}, {} to {}".format(*shown)
    assert words in (folder / "report.html").read_text()
    assert re.search(rf"^took .* \({words}\)$", first.err, re.MULTILINE)
    assert re.search(r"^time +about .* by arithmetic", first.err, re.MULTILINE)
    second = run_lorafit(*train_arguments(tmp_path / "second", "--dry-run"))
    assert re.search(r"^time +about .* as the last run here", second.err, re.MULTILINE)


def test_a_resumed_run_is_predicted_for_what_is_left_of_it(
    run_lorafit, train_arguments, interrupted, tmp_path
):
    folder = interrupted(tmp_path / "run", 4)
    outcome = run_lorafit(*train_arguments(folder))
    assert outcome.code == 0, outcome.err
    record = json.loads((folder / "run.json").read_text())
    whole = record["plan"]["duration"]["seconds"]
    assert 0 < record["results"]["predicted_duration_seconds"] < whole
