"""Memory that runs out inside of the optimizer's update: repeated, or never half applied."""

import json

import pytest
import torch

from lorafit.data.micro_batches import MicroBatchLimits
from lorafit.errors import MemoryFitError
from lorafit.report.events import read_events
from lorafit.training.checkpoints.checkpoint import newest_verified
from lorafit.training.guard.oom import MemoryRecovery

ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture
def fail_once(monkeypatch):
    """Return a function that lets the n-th call of a function of the optimizer fail, once."""

    def arrange(owner, name, call):
        function, calls = getattr(owner, name), []

        def failing(*arguments, **options):
            calls.append(name)
            if len(calls) == call:
                raise ERROR
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, failing)
        return calls

    return arrange


def losses(run_dir):
    return [event["loss"] for event in read_events(run_dir)]


@pytest.fixture
def whole(run_lorafit, train_arguments, tmp_path):
    assert run_lorafit(*train_arguments(tmp_path / "whole")).code == 0
    return tmp_path / "whole"


def test_moments_that_do_not_fit_at_first_are_allocated_again_and_nothing_else_changes(
    run_lorafit, train_arguments, whole, fail_once, tmp_path
):
    from torch.optim import adam

    class Torch:
        """The module's `torch`, whose zeros_like fails on the third moment of the first step."""

        zeros_like = staticmethod(torch.zeros_like)

        def __getattr__(self, name):
            return getattr(torch, name)

    fake = Torch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adam, "torch", fake)
        calls = fail_once(fake, "zeros_like", 3)
        outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert len(calls) > 3
    assert losses(tmp_path / "run") == losses(whole)
    assert (tmp_path / "run" / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    (shrink,) = json.loads((tmp_path / "run" / "run.json").read_text())["memory_recoveries"]
    assert (shrink["step"], shrink["activity"]) == (1, "update")
    assert "out of memory at step 1 (update): cached memory is released" in outcome.err


def test_an_update_that_is_half_done_is_neither_repeated_nor_saved(
    run_lorafit, train_arguments, whole, fail_once, tmp_path
):
    run_dir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "addcdiv_", torch.Tensor.addcdiv_)
        fail_once(torch.Tensor, "addcdiv_", 2 * 24 + 3)  # the third of 24 parameters in step 3
        outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 4, outcome.err
    assert "in the middle of the update of step 3" in " ".join(outcome.err.split())
    record = json.loads((run_dir / "run.json").read_text())
    newest, _ = newest_verified(run_dir, record["run_id"])
    assert newest.step == 2
    resumed = run_lorafit(*train_arguments(run_dir))
    assert resumed.code == 0, resumed.err
    assert losses(run_dir) == losses(whole)
    assert (run_dir / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str
)
@pytest.mark.parametrize("has_moments", [False, True])
def test_a_change_by_any_kind_of_update_is_seen(options, has_moments):
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = torch.optim.AdamW(parameters, **options)
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    if has_moments:
        optimizer.step()

    def step():
        optimizer.step()
        raise ERROR

    recovery = MemoryRecovery(
        limits=MicroBatchLimits(1), eval_batch_size=1, device=torch.device("cpu")
    )
    with pytest.raises(MemoryFitError, match="in the middle of the update of step 7"):
        recovery.run_update(step, optimizer, step=7)


def test_another_error_of_the_update_goes_through():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    recovery = MemoryRecovery(
        limits=MicroBatchLimits(1), eval_batch_size=1, device=torch.device("cpu")
    )

    def step():
        raise RuntimeError("another")

    with pytest.raises(RuntimeError, match="another"):
        recovery.run_update(step, optimizer, step=1)
