import json

import pytest
from processes import ForkServer

from lorafit.report.events import read_events

# The numbers of a step; its time and memory differ from run to run.
NUMBERS = ("step", "loss", "learning_rate", "grad_norm", "epoch", "tokens", "supervised_tokens")
STATE = ("adapter_model.safetensors", "optimizer.safetensors", "optimizer.json", "scheduler.json",
         "rng.safetensors", "rng.json")  # fmt: skip


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory, cache_folder):
    """Commands in processes of their own, without their seconds of imports."""
    return ForkServer(tmp_path_factory.mktemp("commands"), LORAFIT_CACHE_DIR=str(cache_folder))


@pytest.fixture
def record_of():
    return lambda run_dir: json.loads((run_dir / "run.json").read_text())


def numbers(run_dir):
    return [tuple(event[name] for name in NUMBERS) for event in read_events(run_dir)]


@pytest.fixture
def assert_same_run():
    """Same steps, same adapter, same optimizer, schedule and random state at the end."""

    def check(one, other, last_step=6):
        assert numbers(one) == numbers(other)
        adapter = "adapter/adapter_model.safetensors"
        assert (one / adapter).read_bytes() == (other / adapter).read_bytes()
        for name in STATE:
            left, right = ((run / f"checkpoint-{last_step}" / name) for run in (one, other))
            if name.endswith("json"):
                assert json.loads(left.read_text()) == json.loads(right.read_text()), name
            else:
                assert left.read_bytes() == right.read_bytes(), name

    return check


_WHOLE = {}


@pytest.fixture
def whole_run(fork_server, train_arguments, tmp_path_factory):
    """Return a factory of runs that were never interrupted, each trained once."""

    def make(**changes):
        key = json.dumps(changes, sort_keys=True, default=str)
        if key not in _WHOLE:
            run_dir = tmp_path_factory.mktemp("whole") / "run"
            outcome = fork_server.run(*train_arguments(run_dir, **changes))
            assert outcome.code == 0, outcome.err
            _WHOLE[key] = run_dir
        return _WHOLE[key]

    return make


@pytest.fixture
def fail_in_step(monkeypatch):
    """Return a function that makes the loss of an optimizer step raise or change."""
    from lorafit.cli.progress import TerminalProgress
    from lorafit.training import trainer

    def arrange(step, action):
        compute = trainer.micro_batch_loss
        done = {"step": 0}
        on_step = TerminalProgress.on_step

        def count(self, record):
            on_step(self, record)
            done["step"] = record.step

        def loss(model, batch, num_targets, smoothing=0.0):
            value = compute(model, batch, num_targets, smoothing)
            return action(value) if done["step"] == step - 1 and model.training else value

        monkeypatch.setattr(TerminalProgress, "on_step", count)
        monkeypatch.setattr(trainer, "micro_batch_loss", loss)

    return arrange
