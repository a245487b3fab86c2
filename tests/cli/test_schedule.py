import json

import pytest

from lorafit.cli.text_plot import PlotLine, draw_lines


def test_two_curves_are_drawn_and_what_differs_is_said(run_lorafit):
    outcome = run_lorafit("schedule", "--preset", "balanced", "--epochs", 5, "--compare", 2)
    assert outcome.code == 0, outcome.err
    assert "── this run   ·· 2 epochs" in outcome.out
    assert "160 updates of 32 rows = 5 epochs of 32" in outcome.out
    assert "160 steps instead of 64 steps (x2.5)" in outcome.out
    assert "1,000 training rows are assumed" in outcome.err


def test_a_run_that_is_the_presets_own_is_compared_with_nothing(run_lorafit):
    outcome = run_lorafit("schedule", "--preset", "balanced", "--rows", 5000)
    assert "this run" in outcome.out
    assert "beside" not in outcome.out
    changed = run_lorafit("schedule", "--preset", "balanced", "--rows", 5000, "warmup_steps=10")
    assert "this run beside preset balanced" in changed.out
    assert "outside the recommended 3% to 10%" in changed.err


def test_rows_are_counted_in_the_data_without_those_held_out(run_lorafit, tiny_data):
    outcome = run_lorafit("schedule", "--data", tiny_data, "--json")
    document = json.loads(outcome.out)
    assert document["num_rows"] == 18
    assert "18 of 20 rows" in document["rows_reason"]
    both = run_lorafit("schedule", "--data", tiny_data, "--rows", 5)
    assert both.code == 2
    assert "both say how many rows" in both.err


def test_json_has_both_curves_and_their_figures(run_lorafit):
    outcome = run_lorafit(
        "schedule", "--preset", "low", "--rows", 3000, "--epochs", 3, "--compare", 6, "--json"
    )
    document = json.loads(outcome.out)
    assert document["schema_version"] == 1
    run, other = document["run"], document["compared_with"]
    assert other["total_steps"] == 2 * run["total_steps"]
    assert run["curve"][0] == {"step": 1, "learning_rate": 0.0}
    assert run["curve"][-1]["step"] == run["total_steps"]
    assert max(point["learning_rate"] for point in run["curve"]) == run["peak_rate"] == 2e-4
    assert document["changes"]


def test_curves_are_drawn_into_a_file(run_lorafit, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "rates.png"
    outcome = run_lorafit("schedule", "--epochs", 3, "--plot", file)
    assert outcome.code == 0, outcome.err
    assert file.read_bytes().startswith(b"\x89PNG")
    wrong = run_lorafit("schedule", "--plot", tmp_path / "rates.doc")
    assert (wrong.code, "rates.doc" in wrong.err) == (2, True)
    missing = run_lorafit("schedule", "--plot", tmp_path / "none" / "rates.png")
    assert missing.code == 7


def test_the_plan_of_a_run_shows_the_curve_and_what_differs_from_the_preset(
    run_lorafit, train_arguments, tmp_path
):
    arguments = train_arguments(tmp_path / "run", "--dry-run", preset="quick-test")
    outcome = run_lorafit(*arguments)
    assert outcome.code == 0, outcome.err
    assert "·· preset quick-test" in outcome.err
    assert "unlike preset quick-test:" in outcome.err


# -- The drawing ---------------------------------------------------------------------------


def plain(*lines, **options):
    return [text.plain for text in draw_lines(lines, **{"width": 30, "height": 5, **options})]


def test_a_rising_line_is_joined_from_the_lower_left_to_the_upper_right():
    rows = plain(PlotLine("up", 100, lambda step: step / 99))
    assert rows[0].startswith("  1 │")
    assert rows[0].endswith("─")
    assert rows[2].startswith("0.5 │")
    assert rows[4].startswith("  0 │─")
    assert rows[5].endswith("100")
    assert rows[6].strip() == "── up"
    assert max(map(len, rows)) <= 30


def test_a_shorter_second_line_ends_where_its_run_ends_and_lies_below():
    rows = plain(PlotLine("a", 100, lambda step: 1.0), PlotLine("b", 50, lambda step: 0.5))
    dots = rows[2].count("·")
    assert dots == pytest.approx((30 - 5) / 2, abs=1.5)
    assert "·· b" in rows[-1]
    covered = plain(PlotLine("a", 100, lambda step: 1.0), PlotLine("b", 100, lambda step: 1.0))
    assert "·" not in covered[0]


def test_ascii_has_nothing_beyond_ascii():
    lines = [PlotLine("a", 9, lambda step: step), PlotLine("b", 9, lambda step: 9.0 - step)]
    rows = plain(*lines, ascii_only=True)
    assert all(row.isascii() for row in rows)
    assert "|" in rows[0]


def test_a_run_of_one_step_with_rate_zero_is_drawn():
    assert plain(PlotLine("zero", 1, lambda step: 0.0))[4].strip().endswith("─")
