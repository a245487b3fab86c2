"""No secret of the environment ends up in a file, on a stream or in a crash log."""

import os
import re
import secrets

import pytest
from tiny import start_lorafit

from lorafit.text import hide_secrets, holds_secret

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD",
             "COMET_API_KEY", "AWS_SECRET_ACCESS_KEY")  # fmt: skip


@pytest.fixture
def canaries():
    """A value of its own for every variable that may hold a secret."""
    return {name: f"hf_{secrets.token_hex(17)}" for name in VARIABLES}


def holders(folder, values):
    """Return every file below a folder that holds one of the values, in any part of it."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [path for value in values if value.encode() in content]
        found += [path for value in values if value in path.name]
    return found


def test_a_planted_value_would_be_found(tmp_path, canaries):
    value = canaries["HF_TOKEN"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "events").write_bytes(b"\0\xff" + value.encode() + b"\0")
    (tmp_path / value).touch()
    assert len(holders(tmp_path, canaries.values())) == 2


def test_a_whole_run_keeps_every_secret(train_arguments, tmp_path, canaries):
    """Records, checkpoints, tracker files, caches and both streams of a run with secrets set."""
    folders = {
        name: str(tmp_path / name.lower())
        for name in ("TMPDIR", "HOME", "HF_HOME", "LORAFIT_CACHE_DIR")
    }
    for folder in folders.values():
        os.mkdir(folder)
    arguments = train_arguments(
        tmp_path / "run", "--report-to", "tensorboard", "--json", max_steps=2, save_steps=1
    )
    process = start_lorafit(*arguments, **folders, **canaries)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    written = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    assert {"run.json", "events.jsonl", "adapter_config.json", "manifest.json"} <= set(written)
    assert any(name.startswith("events.out.tfevents") for name in written)
    assert not holders(tmp_path, canaries.values())
    for value in canaries.values():
        assert value not in out + err
    # What only sounds like a secret is still there.
    assert '"tokens": ' in out
    assert '"tokens_per_second": ' in (tmp_path / "run" / "events.jsonl").read_text()


def test_a_crash_log_hides_what_an_exception_says(run_lorafit, monkeypatch, tmp_path, canaries):
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    plain = "a-key-of-no-known-shape"
    monkeypatch.setenv("SOME_SERVICE_API_KEY", plain)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(*_):
        raise ValueError(
            f"GET https://me:pw-of-mine@host with {plain} {' '.join(canaries.values())}"
        )

    monkeypatch.setattr("lorafit.cli.settings_flags.RunChoices.resolve", fail)
    monkeypatch.setenv("LORAFIT_TRACEBACK", "1")
    outcome = run_lorafit_with_traceback(monkeypatch, run_lorafit)
    (log,) = tmp_path.glob("lorafit-crash-*.log")
    for text in (outcome, log.read_text()):
        assert "GET https://<secret>@host with <secret>" in text
        for value in (*canaries.values(), plain, "pw-of-mine"):
            assert value not in text


def run_lorafit_with_traceback(monkeypatch, run_lorafit):
    """Return what a crash says; the fixture's own check for tracebacks is about users."""
    from lorafit.cli import console

    said = []
    monkeypatch.setattr(console, "say", lambda text="": said.append(str(text)))
    outcome = run_lorafit("train", "--data", "x")
    assert outcome.code == 1
    return outcome.err + "".join(said)


@pytest.mark.parametrize(
    "text",
    [
        "num_tokens: 48213", "pad_token <|endoftext|>", "tokens_per_second 3,881", "token_id=7",
        "hf_internal_testing/tiny", "someone@example.com", "sk-learn", "max_new_tokens 128",
        "0123456789abcdef0123456789abcdef01234567", "s3://bucket/path", "api_key", "ghost_writer",
    ],
)  # fmt: skip
def test_words_about_tokens_are_no_secrets(text):
    assert hide_secrets(text) == text
    assert not holds_secret(text)


@pytest.mark.parametrize(
    "secret",
    ["hf_" + "a1B2" * 8, "sk-" + "a1B2" * 8, "ghp_" + "a1B2" * 8, "https://me:pw@host",
     "https://token@host/x", "s3://key:value@bucket"],
)  # fmt: skip
def test_each_of_these_is_hidden(secret):
    shown = hide_secrets(f"before {secret} after")
    assert re.fullmatch(r"before \S*<secret>\S* after", shown)
    assert holds_secret(secret)


def test_a_short_value_of_a_variable_is_not_searched_for(monkeypatch):
    monkeypatch.setenv("TEST_TOKEN", "on")
    assert hide_secrets("once upon") == "once upon"
