import math

import pytest

from lorafit.config.batch import BatchPlan
from lorafit.config.fields import field_rule
from lorafit.config.schedule import learning_rate_at, plan_schedule
from lorafit.config.schema import Settings
from lorafit.errors import ConfigError


def batch(micro: int, accumulation: int, devices: int = 1) -> BatchPlan:
    return BatchPlan(micro, accumulation, devices, micro * accumulation * devices, "for a test")


@pytest.mark.parametrize(
    ("rows", "plan", "epochs", "steps_per_epoch", "total", "last"),
    [
        (1000, batch(8, 8), 20, 16, 320, 40),  # 125 passes, 15 full steps of 64, 40 rows left
        (64, batch(8, 8), 3, 1, 3, 64),
        (65, batch(8, 8), 3, 2, 6, 1),
        (1, batch(8, 8), 3, 1, 3, 1),
        (1000, batch(4, 8, 2), 1, 16, 16, 40),
        (10, batch(3, 1), 0.5, 4, 2, 1),  # fractional epochs round up
        (10, batch(3, 1), 1.3, 4, 6, 1),
    ],
)
def test_steps_are_counted_by_hand(rows, plan, epochs, steps_per_epoch, total, last):
    schedule = plan_schedule(rows, plan, Settings(num_train_epochs=epochs))
    assert schedule.steps_per_epoch == steps_per_epoch
    assert schedule.total_steps == total
    assert schedule.rows_last_step == last
    assert schedule.num_epochs == total / steps_per_epoch


@pytest.mark.parametrize("rows", [1, 7, 64, 65, 1000])
@pytest.mark.parametrize("plan", [batch(1, 1), batch(3, 2), batch(4, 16), batch(2, 3, 4)])
@pytest.mark.parametrize(("epochs", "max_steps"), [(20, None), (0.3, None), (3, 1), (2.5, 50)])
def test_steps_equal_those_of_the_trainer(tmp_path, rows, plan, epochs, max_steps):
    from types import SimpleNamespace

    from torch.utils.data import DataLoader
    from transformers import Trainer

    # Each of the devices reads its share of the batches; the Trainer sees that share's length.
    loader = DataLoader(range(rows), batch_size=plan.per_device_train_batch_size * plan.num_devices)
    arguments = SimpleNamespace(
        max_steps=max_steps or -1,
        num_train_epochs=epochs,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
    )
    trainer = SimpleNamespace(
        get_total_train_batch_size=lambda args: plan.effective_batch_size,
        get_sp_size=lambda: 1,
        num_examples=lambda dataloader: rows,
    )
    counted = Trainer.set_initial_training_values(trainer, arguments, loader)
    schedule = plan_schedule(rows, plan, Settings(num_train_epochs=epochs, max_steps=max_steps))
    assert schedule.steps_per_epoch == counted[1]
    assert math.ceil(schedule.num_epochs) == counted[0]
    assert schedule.micro_batches_per_epoch == counted[5]
    assert schedule.total_steps == counted[6]


@pytest.mark.parametrize("kind", field_rule("lr_scheduler_type").choices)
@pytest.mark.parametrize(("total", "warmup"), [(40, 0), (40, 4), (40, 39), (1, 0), (2, 1)])
def test_learning_rates_equal_those_of_transformers_at_every_step(kind, total, warmup):
    import torch
    from transformers import get_scheduler

    settings = Settings(
        lr_scheduler_type=kind, max_steps=total, warmup_steps=warmup, learning_rate=3e-4
    )
    schedule = plan_schedule(100, batch(1, 1), settings)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=settings.learning_rate)
    real = get_scheduler(kind, optimizer, schedule.warmup_steps, schedule.total_steps)
    for step in range(total):
        expected = real.get_last_lr()[0]
        assert learning_rate_at(schedule, settings, step) == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        real.step()


@pytest.mark.parametrize(
    ("total", "ratio", "steps"),
    [(320, 0.05, 16), (10, 0.05, 1), (1, 0.05, 0), (2, 0.05, 1), (2, 0.9, 1), (100, 0, 0)],
)
def test_the_warm_up_is_its_share_rounded_up_and_leaves_a_step(total, ratio, steps):
    schedule = plan_schedule(999, batch(1, 1), Settings(max_steps=total, warmup_ratio=ratio))
    assert schedule.warmup_steps == steps
    assert schedule.warmup_share == steps / total
    assert f"warmup_ratio {ratio:g} of {total} steps" in schedule.warmup_reason
    peak = learning_rate_at(schedule, Settings(), total - 1 if steps else 0)
    assert peak > 0


def test_warmup_steps_keep_their_number_and_lose_their_share():
    short = plan_schedule(64, batch(8, 1), Settings(num_train_epochs=10, warmup_steps=8))
    long = plan_schedule(64, batch(8, 1), Settings(num_train_epochs=40, warmup_steps=8))
    assert (short.warmup_steps, short.warmup_share) == (8, 0.1)
    assert (long.warmup_steps, long.warmup_share) == (8, 0.025)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="a warm-up of 8 steps does not end within the 8 steps"):
        plan_schedule(64, batch(8, 1), Settings(num_train_epochs=1, warmup_steps=8))


def test_no_rows_is_refused():
    with pytest.raises(ConfigError, match="there are no rows"):
        plan_schedule(0, batch(8, 1), Settings())
