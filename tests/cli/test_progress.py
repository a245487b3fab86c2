"""What a terminal shows while a run goes on."""

import io
import json
import logging
import re

import pytest
from rich.console import Console

from lorafit.cli import console
from lorafit.cli.live_view import Gauge, LiveState, describe_sample, render_state, sparkline
from lorafit.cli.progress import TerminalProgress
from lorafit.errors import LorafitError
from lorafit.report.flops import StepFlops
from lorafit.report.records import StepRecord
from lorafit.units import GIB


def record(step, **changes):
    values = {
        "step": step, "loss": 3.0 / step, "learning_rate": 1e-4, "grad_norm": 1.0, "epoch": 0.5,
        "tokens": 1000, "supervised_tokens": 400, "tokens_per_second": 500.0, "seconds": 2.0,
        "memory_allocated_bytes": 10, "memory_reserved_bytes": (4 + step) * GIB,
    }  # fmt: skip
    return StepRecord(**{**values, **changes})


def shown(state, width=80):
    console = Console(width=width, file=io.StringIO(), legacy_windows=False)
    console.print(render_state(state, width))
    return console.file.getvalue()


# -- The panel -----------------------------------------------------------------------------------


def test_the_panel_has_every_figure_within_its_width():
    gauge = Gauge(
        predicted_bytes=7 * GIB,
        capacity_bytes=10 * GIB,
        peak_flops=1e12,
        step_flops=StepFlops(1e9, 0.0, head_sees_all=False),
    )
    state = LiveState(gauge, num_steps=10, first_step=0)
    for step in range(1, 5):
        state.add(record(step, **({"validation_loss": 2.0 - step / 4} if step % 2 == 0 else {})))
    state.sample = describe_sample("colour of the sky?", " blue")
    for width in (80, 100):
        text = shown(state, width)
        assert max(map(len, text.splitlines())) <= width
        for part in (
            "4/10", "40%", "0.7500", "lr 1.00e-04", "1.0000 at step 4  ↓ 0.5000",
            "500 tokens/s  2 s a step  50% of the device's peak FLOPs",
            "8.00 GiB now  8.00 GiB peak  7.00 GiB predicted  80% of 10.0 GiB",
            "colour of the sky? → blue",
        ):  # fmt: skip
            assert part in text, (part, text)


def test_a_share_of_the_peak_is_shown_only_where_the_peak_is_known():
    state = LiveState(Gauge(), num_steps=10, first_step=0)
    state.add(record(1))
    text = shown(state)
    assert "FLOPs" not in text
    assert "predicted" not in text
    assert "validation" not in text


def test_a_rising_validation_loss_points_up_and_the_best_is_named():
    state = LiveState(Gauge(), num_steps=10, first_step=0)
    state.add(record(1, validation_loss=1.0))
    state.add(record(2, validation_loss=1.25))
    assert "1.2500 at step 2  ↑ 0.2500  best 1.0000 at step 1" in shown(state)


def test_the_panel_shows_what_is_left_once_a_second_step_tells_the_pace():
    gauge = Gauge(eval_steps=5, save_steps=100, validation_seconds=3000.0)
    state = LiveState(gauge, num_steps=110, first_step=100)
    state.add(record(101, seconds=90.0))
    assert "left" not in shown(state)
    state.add(record(102, seconds=900.0))
    # Eight steps and two validations, less what has passed since: surely under a minute.
    assert re.search(r"so far, (3 h 40 min|3 h 39 min) left", shown(state))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([1.0, 1.0], "▁▁"),
        ([0.0, 7.0], "▁█"),
        ([7.0, 7.0, 0.0, 0.0], "██▁▁"),
    ],
)
def test_a_sparkline_goes_from_its_lowest_to_its_highest(values, line):
    assert sparkline(values) == line


def test_a_long_sparkline_is_averaged_into_its_columns():
    assert sparkline([1.0] * 500 + [0.0] * 500, 10) == "█████▁▁▁▁▁"


def test_a_sample_cannot_steer_the_terminal():
    assert "\x1b" not in describe_sample("a\x1b[2J", "b\x1b]0;title\x07")


# -- Lines ---------------------------------------------------------------------------------------


def follow(progress, steps=4):
    progress.on_start(steps, 0)
    for step in range(1, steps + 1):
        progress.on_step(record(step))
    progress.on_note("something\x1b[2J happened")
    progress.on_end()


def lines(**options):
    console = Console(width=100, file=io.StringIO(), **options.pop("console", {}))
    follow(TerminalProgress(console, 2, **options))
    return console.file.getvalue()


def test_plain_lines_come_at_the_first_and_every_logging_step():
    text = lines()
    assert [line.split()[1] for line in text.splitlines() if line.startswith("step")] == [
        "1/4", "2/4", "4/4",
    ]  # fmt: skip
    assert "\x1b" not in text


def test_log_levels_print_every_step_or_notes_only():
    assert lines(level=logging.DEBUG).count("step ") == 4
    assert lines(level=logging.WARNING).splitlines() == ["something\\x1b[2J happened"]


def test_a_terminal_gets_the_panel_and_is_left_without_it(tmp_path):
    (tmp_path / "samples.jsonl").write_text(
        json.dumps({"step": 1, "prompt": "sky?", "completion": "blue"}) + "\n"
    )
    console = Console(
        width=100, height=30, file=io.StringIO(), force_terminal=True, legacy_windows=False
    )
    progress = TerminalProgress(console, 2, run_dir=tmp_path)
    progress.on_start(3, 0)
    progress.on_step(record(1, validation_loss=1.0))
    progress.on_evaluation(1, 1, 4)
    assert progress._state.activity == "validating 1/4"
    progress.on_step(record(2))
    assert progress._state.sample == "sky? → blue"
    progress._live.refresh()
    progress.on_end()
    assert "tokens/s" in console.file.getvalue()
    assert progress._live is None


def test_lines_of_a_terminal_fit_beside_their_panel_and_break_between_words():
    console = Console(
        width=80, height=30, file=io.StringIO(), force_terminal=True, legacy_windows=False,
        color_system=None,
    )  # fmt: skip
    progress = TerminalProgress(console, 1)
    progress.on_start(400, 0)
    assert "left" not in progress._line(record(1))
    assert len(progress._line(record(20))) <= 80
    progress.on_end()
    console.file.truncate(0)
    progress._print("word " * 30)
    assert set(console.file.getvalue().replace("\x00", "").split()) == {"word"}


def test_warnings_and_errors_break_between_words_on_a_terminal_only(monkeypatch):
    text = "some-words " * 20
    for is_terminal in (True, False):
        stream = console._Stream(width=40, file=io.StringIO(), force_terminal=is_terminal)
        monkeypatch.setattr(console, "_err", stream)
        console.warn(text)
        console.error(LorafitError(text, hint="lorafit " + text))
        shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.file.getvalue())
        warning, _, rest = shown.partition("error: ")
        error, _, hint = rest.partition("hint: ")
        for words in (warning, error):
            assert set(words.split()) - {"warning:"} == {"some-words"}
            assert (len(words.splitlines()) > 1) == is_terminal
        # A command survives being copied.
        assert hint.strip() == ("lorafit " + text).strip()


# -- The commands --------------------------------------------------------------------------------


def test_an_unknown_log_level_is_refused_before_anything_is_read(run_lorafit):
    outcome = run_lorafit("train", "--log-level", "loud")
    assert outcome.code == 2
    assert "'loud' is not a log level" in outcome.err


def test_a_quiet_run_prints_notes_only(run_lorafit, train_arguments, tmp_path):
    arguments = train_arguments(tmp_path / "run", "--log-level", "warning", report_to="none")
    outcome = run_lorafit(*arguments)
    assert outcome.code == 0, outcome.err
    assert not re.search(r"^step \d", outcome.err, re.MULTILINE)
    assert "a new run" in outcome.err


def test_tensorboard_refuses_what_has_no_curves(run_lorafit, tmp_path):
    outcome = run_lorafit("tensorboard", tmp_path)
    assert outcome.code == 3
    assert "holds no curves" in outcome.err
    assert run_lorafit("tensorboard", tmp_path / "none").code == 3
