import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorafit.config.presets import preset_names
from lorafit.doctor.report import DoctorReport

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def doctor(tmp_path):
    """Run `lorafit doctor` in an empty folder, as a person would."""

    def run(*arguments, **environ):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("CUDA_")}
        if "--timeout" not in arguments:
            # The usual ten seconds are for people: a busy machine may need them for its imports.
            arguments = (*arguments, "--timeout", "300")
        return subprocess.run(
            [sys.executable, "-m", "lorafit", "doctor", *arguments],
            capture_output=True,
            encoding="utf-8",
            cwd=tmp_path,
            env={**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **environ},
        )

    return run


def test_json_follows_the_schema_and_a_four_bit_product_is_made_for_real(doctor):
    result = doctor("--json")
    document = json.loads(result.stdout)
    report = DoctorReport.model_validate(document)
    assert document["schema_version"] == 1
    assert list(document) == [
        "schema_version", "lorafit", "generated_at", "summary", "recommended", "findings",
    ]  # fmt: skip
    assert list(document["findings"][0]) == [
        "id", "group", "status", "title", "detail", "measured", "required", "fix", "docs_url",
        "duration_ms",
    ]  # fmt: skip
    assert sum(document["summary"].values()) == len(report.findings) > 20
    assert report.summary.crash == 0
    assert result.returncode == (1 if report.summary.error else 0), result.stdout
    assert report.recommended.device
    (four_bit,) = [found for found in report.findings if found.id == "pkg.bitsandbytes"]
    assert four_bit.status == "ok", four_bit
    assert 3 < float((four_bit.measured or "").split()[0]) < 20  # percent; 4 bits give about 9
    assert result.stderr == ""


def test_the_shipped_schema_is_that_of_the_models_and_real_output_follows_it(doctor):
    import jsonschema

    shipped = json.loads((ROOT / "lorafit/doctor/doctor.schema.json").read_text())
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    assert shipped == dialect | DoctorReport.model_json_schema()
    result = doctor("--json", "--check", "env", "--check", "gpu", CUDA_LAUNCH_BLOCKING="1")
    document = json.loads(result.stdout)
    validator = jsonschema.Draft202012Validator(shipped)
    validator.validate(document)
    assert {finding["status"] for finding in document["findings"]} == {"ok", "warn", "skip"}
    assert len(document["recommended"]["presets"]) == len(preset_names())
    document["findings"][0]["status"] = "fine"
    assert not validator.is_valid(document)


def test_an_estimate_that_hangs_is_not_waited_for_twice(monkeypatch, run_lorafit):
    import threading

    from lorafit.doctor import probe

    release, asked = threading.Event(), []

    def hang(*arguments, **options):
        asked.append(1)
        release.wait(600)
        return []

    monkeypatch.setattr(probe, "fit_presets", hang)
    outcome = run_lorafit("doctor", "--check", "gpu.fit", "--timeout", "1")
    release.set()
    assert outcome.code == 1
    assert "no answer within 1 s" in outcome.out
    assert "Start with:" in outcome.out
    assert len(asked) == 1


def test_a_preset_that_does_not_exist_is_a_usage_error(doctor):
    result = doctor("--preset", "balancd")
    assert result.returncode == 2
    assert "did you mean balanced" in result.stderr


def test_a_bundle_of_preset_model_and_data_is_checked_together(doctor, tiny_model, tiny_data):
    result = doctor(
        "--preset", "quick-test", "--model", str(tiny_model()), "--data", str(tiny_data),
        "--check", "preset", "--check", "model", "--check", "data", "--json",
    )  # fmt: skip
    statuses = {f["id"]: f["status"] for f in json.loads(result.stdout)["findings"]}
    assert statuses["model.files"] == "ok"
    assert statuses["preset.fit"] in ("ok", "warn")
    assert statuses["data.file"] in ("ok", "warn")


def test_schema_of_the_document_is_closed():
    schema = DoctorReport.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) >= {"schema_version", "summary", "recommended", "findings"}
    statuses = schema["$defs"]["Finding"]["properties"]["status"]["enum"]
    assert statuses == ["ok", "warn", "error", "skip", "crash"]


def test_text_is_ascii_plain_and_within_80_columns_under_the_c_locale(doctor):
    result = doctor(
        "--check", "env", "--check", "net", "--check", "gpu",
        LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", CUDA_LAUNCH_BLOCKING="1",
    )  # fmt: skip
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout
    assert "?" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "!! Environment variables" in result.stdout
    assert "why it matters:" in result.stdout
    assert "        unset CUDA_LAUNCH_BLOCKING" in result.stdout
    assert re.search(r"\d ok, 1 warning, 0 errors, \d skipped \(not checked\)", result.stdout)


def test_strict_turns_a_warning_into_exit_1(doctor):
    assert doctor("--check", "env", CUDA_LAUNCH_BLOCKING="1").returncode == 0
    assert doctor("--check", "env", "--strict", CUDA_LAUNCH_BLOCKING="1").returncode == 1


def test_a_device_that_is_not_here_is_an_error_finding(doctor):
    result = doctor("--check", "device", "--device", "mps" if sys.platform != "darwin" else "cuda")
    assert result.returncode == 1
    assert "✗ Device" in result.stdout
    assert "fix:" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check", "gpu.memry"], "did you mean gpu.memory"),
        (["--device", "tpu"], "'tpu' is not a device"),
        (["--timeout", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_arguments_exit_2(doctor, arguments, message):
    result = doctor(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_list_shows_every_check_without_running_one(doctor):
    result = doctor("--list")
    assert result.returncode == 0
    for check_id in ("python.version", "pkg.bitsandbytes", "disk.cache", "preset.valid"):
        assert check_id in result.stdout
