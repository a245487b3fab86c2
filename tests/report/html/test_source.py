import json
import math

import pytest
from made_runs import step_record, write_run

from lorafit.errors import InputError
from lorafit.report.html.curves import columns_of, table_rows, thin
from lorafit.report.html.source import Sample, load_run, plain_event, tell_apart


def test_reads_what_the_writers_wrote(tmp_path):
    run = load_run(write_run(tmp_path / "first", num_steps=12, learning_rate=3e-4))
    assert run.name == "first"
    assert run.settings["learning_rate"] == 3e-4
    assert [event["step"] for event in run.events] == list(range(1, 13))
    assert run.table("plan", "schedule")["total_steps"] == 200
    assert run.table("plan", "nothing", "here") == {}


def test_a_folder_without_a_run_is_named_with_what_to_type(tmp_path):
    with pytest.raises(InputError, match=r"holds no run\.json") as caught:
        load_run(tmp_path)
    assert "--output-dir" in caught.value.hint
    with pytest.raises(InputError, match="there is no such folder"):
        load_run(tmp_path / "missing")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"status": 1}', "\xff", "[" * 100_000,
                                     '{"status": "running", "plan": 3}'])  # fmt: skip
def test_a_damaged_record_is_an_input_error(tmp_path, content):
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"run\.json"):
        load_run(tmp_path)


def test_a_line_that_is_no_sample_is_passed_over(tmp_path):
    run_dir = write_run(tmp_path, num_steps=1)
    lines = ['{"step": 3, "prompt": "a", "completion": "b"}', "{", "[]", '{"step": "x"}', ""]
    (run_dir / "samples.jsonl").write_text("\n".join(lines))
    assert load_run(run_dir).samples == [Sample(3, "a", "b")]


def test_only_finite_numbers_of_an_event_are_kept():
    event = {"step": 1, "loss": math.nan, "grad_norm": math.inf, "text": "x", "is_last": True}
    assert plain_event(event) == {"step": 1}


def test_runs_of_one_name_get_as_many_parents_as_tell_them_apart(tmp_path):
    folders = [tmp_path / "a" / "x" / "run", tmp_path / "b" / "x" / "run"]
    runs = tell_apart([load_run(write_run(folder, num_steps=1)) for folder in folders])
    assert [run.name for run in runs] == ["a/x/run", "b/x/run"]


def test_columns_have_a_place_for_every_step():
    columns = columns_of([{"step": 1, "loss": 2.0}, {"loss": 9.0}, {"step": 2, "grad_norm": 1}])
    assert columns["step"] == [1, 2]
    assert columns["loss"] == [2.0, None]
    assert columns["grad_norm"] == [None, 1]


def test_thinning_keeps_ends_spikes_dips_and_validations():
    events = [step_record(step).as_dict() for step in range(1, 20_001)]
    events[7_654]["loss"] = 1e6
    events[12_345]["tokens_per_second"] = 0.0
    whole = columns_of(events)
    few = thin(whole, max_buckets=50)
    validations = [value for value in whole["validation_loss"] if value is not None]
    assert len(few["step"]) < 50 * 12 + len(validations) + 2
    assert (few["step"][0], few["step"][-1]) == (1, 20_000)
    assert max(few["loss"]) == 1e6
    assert min(few["tokens_per_second"]) == 0.0
    assert [value for value in few["validation_loss"] if value is not None] == validations
    assert few["step"] == sorted(few["step"])


def test_a_short_run_is_not_thinned():
    columns = columns_of([step_record(step).as_dict() for step in range(1, 100)])
    assert thin(columns) == columns


def test_the_table_of_values_has_the_last_row_and_every_validation():
    rows = table_rows(columns_of([step_record(step).as_dict() for step in range(1, 1002)]))
    assert rows[-1]["step"] == 1001
    assert sum(row["validation_loss"] is not None for row in rows) == 100
    assert json.dumps(rows)


def test_only_a_run_with_rewards_has_columns_of_them():
    plain = columns_of([{"step": 1, "loss": 2.0}])
    assert "reward" not in plain
    rewarded = columns_of([{"step": 1, "reward": 0.25, "kl": 0.5}, {"step": 2, "reward": 0.75}])
    assert rewarded["reward"] == [0.25, 0.75]
    assert rewarded["kl"] == [0.5, None]
