import threading
import time

import pytest

from lorafit.doctor.check import Check, ok, select_checks, warn
from lorafit.doctor.redact import redact
from lorafit.doctor.report import make_report, recommend
from lorafit.doctor.runner import run_checks
from lorafit.errors import ExitCode, UsageError


def entry(run, check_id="a.b"):
    return Check(check_id, "Group", "Title", "it would break", run)


def test_exception_is_a_finding_and_the_others_still_run(make_probe):
    def broken(probe):
        raise ZeroDivisionError("oops")

    crashed, fine = run_checks([entry(broken), entry(lambda probe: ok("fine"), "c")], make_probe())
    assert (crashed.status, fine.status) == ("crash", "ok")
    assert "ZeroDivisionError: oops" in crashed.detail
    assert "Traceback" not in crashed.detail


def test_hung_check_is_reported_and_does_not_hold_up_the_rest(make_probe):
    release = threading.Event()
    hung = entry(lambda probe: ok(str(release.wait(600))), "disk.cache")
    started = time.monotonic()
    findings = run_checks([hung, entry(lambda probe: ok("fine"))], make_probe(timeout_seconds=2))
    release.set()
    assert time.monotonic() - started < 300
    assert [finding.status for finding in findings] == ["crash", "ok"]
    assert "no answer within 2 s" in findings[0].detail
    assert findings[0].fix.commands == ["lorafit doctor --check disk.cache --timeout 60"]


def test_warning_says_why_it_matters_and_how_to_fix_it(make_probe):
    (finding,) = run_checks([entry(lambda probe: warn("odd", "do", "cmd 1"))], make_probe())
    assert finding.detail == "odd; why it matters: it would break"
    assert (finding.fix.text, finding.fix.commands) == ("do", ["cmd 1"])


def test_only_strict_fails_on_warnings(make_probe):
    probe = make_probe()
    findings = run_checks([entry(lambda p: warn("odd", "do"))], probe)
    report = make_report(findings, recommend(probe.device(), [], None))
    assert not report.has_failed(strict=False)
    assert report.has_failed(strict=True)
    assert report.summary.warn == 1


def test_selects_by_id_and_by_group():
    assert [found.id for found in select_checks(["ram.total"])] == ["ram.total"]
    assert {found.id for found in select_checks(["disk"])} >= {"disk.output", "disk.cache"}
    assert len(select_checks([])) > 20


def test_unknown_check_names_the_nearest():
    with pytest.raises(UsageError, match=r"'pkg.torhc'; did you mean pkg.torch") as caught:
        select_checks(["pkg.torhc"])
    assert caught.value.exit_code == ExitCode.USAGE


def test_every_check_states_what_it_protects():
    for found in select_checks([]):
        assert found.affects
        assert found.affects[-1] != "."
        assert found.run.__doc__ or found.id.startswith("pkg.")


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("token hf_abcdefghijklmnopqrstuv", "token <token>"),
        ("https://bob:pw@proxy:80/x", "https://<user>@proxy:80/x"),
        ("GPU-749a4951-86af-0c5a-2a58-67aa5ebf9d4e", "GPU-<uuid>"),
        ("num_tokens 40, pad_token 3", "num_tokens 40, pad_token 3"),
    ],
)
def test_redacts_secrets_and_nothing_else(secret, shown):
    assert redact(secret) == shown


def test_shortens_the_home_folder(monkeypatch, tmp_path):
    from lorafit.doctor import redact as module

    monkeypatch.setenv("HOME", str(tmp_path))
    module._identity.cache_clear()
    try:
        assert redact(f"{tmp_path}/cache and {tmp_path}") == "~/cache and ~"
        assert redact(f"/other{tmp_path}") == f"/other{tmp_path}"
    finally:
        module._identity.cache_clear()
