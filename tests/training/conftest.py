import signal

import pytest

from lorafit.cli.progress import TerminalProgress


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that makes the next run receive a signal in time to save step `step`."""

    def arrange(step, number=signal.SIGTERM):
        starts, steps = TerminalProgress.on_start, TerminalProgress.on_step

        def on_start(self, num_steps, first_step):
            starts(self, num_steps, first_step)
            # Before the first step, so that the whole of it is still to come.
            if step == 1 and first_step == 0:
                signal.raise_signal(number)

        def on_step(self, record):
            steps(self, record)
            if record.step == step > 1:
                signal.raise_signal(number)

        monkeypatch.setattr(TerminalProgress, "on_start", on_start)
        monkeypatch.setattr(TerminalProgress, "on_step", on_step)

        def disarm():
            monkeypatch.setattr(TerminalProgress, "on_start", starts)
            monkeypatch.setattr(TerminalProgress, "on_step", steps)

        return disarm

    return arrange


@pytest.fixture
def interrupted(run_lorafit, train_arguments, stop_at):
    """Return a factory of run folders that were stopped by a signal during a step."""

    def make(run_dir, step, *more, **changes):
        disarm = stop_at(step)
        outcome = run_lorafit(*train_arguments(run_dir, *more, **changes))
        disarm()
        assert outcome.code == 75, outcome.err
        assert f"SIGTERM received: saved at step {step} of " in outcome.err
        assert "hint: run the same command again to go on from there" in outcome.err
        return run_dir

    return make
