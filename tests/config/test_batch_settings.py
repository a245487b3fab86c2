"""`padding_free` and `packing`: how they are written, and what they rule out."""

import pytest

from lorafit.config.batch import BatchPlan
from lorafit.config.fields import WrongValueError, check_value, parse_text
from lorafit.config.rules import find_conflicts
from lorafit.config.schedule import plan_schedule
from lorafit.config.schema import Settings


@pytest.mark.parametrize(("written", "value"), [(True, "true"), (False, "false"), ("auto", "auto")])
def test_a_files_true_and_false_are_choices_beside_auto(written, value):
    assert check_value("padding_free", written) == value
    assert parse_text("padding_free", value) == value


@pytest.mark.parametrize("written", ["maybe", 1, "True"])
def test_anything_else_is_refused_with_the_choices(written):
    with pytest.raises(WrongValueError, match="one of auto, true, false"):
        check_value("padding_free", written)


def test_a_boolean_is_still_no_name():
    with pytest.raises(WrongValueError):
        check_value("kernels", True)


@pytest.mark.parametrize("other", [{"padding_free": "false"}, {"kernels": "stock"}])
def test_packing_contradicts_what_pads(other):
    (found,) = find_conflicts(Settings(packing=True, **other), {"packing", *other}.__contains__)
    assert found.settings == ("packing", *other)
    assert "set packing to false" in found.hint
    assert not find_conflicts(Settings(packing=True), {"packing"}.__contains__)


def test_the_schedule_counts_bins_where_rows_are_packed():
    batch = BatchPlan(2, 2, 1, 4, "")
    settings = Settings(packing=True, num_train_epochs=1)
    assert "10 bins at 4 a step" in plan_schedule(10, batch, settings).total_reason
    plain = Settings(num_train_epochs=1)
    assert "10 rows at 4 a step" in plan_schedule(10, batch, plain).total_reason
