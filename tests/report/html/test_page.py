import base64
import hashlib
import json
import re

import pytest
from made_runs import HOSTILE, write_run

from lorafit.errors import InputError, StorageError
from lorafit.report.html.render import render_page, render_sections
from lorafit.report.html.source import load_run
from lorafit.report.html.write import write_report


def page_of(*folders, **options):
    return render_page([load_run(folder) for folder in folders], **options)


def payload_of(page):
    found = re.search(r'<script type="application/json" id="lorafit-data">(.*?)</script>', page)
    return json.loads(found.group(1))


def visible(page):
    """Return the page's text without scripts, styles and tags, entities as characters."""
    import html

    bare = re.sub(r"<(script|style)\b.*?</\1>|<!--.*?-->", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())


def test_the_page_says_what_the_run_was_and_what_came_of_it(tmp_path):
    samples = ({"step": 100, "prompt": "the sky is", "completion": " blue"},)
    folder = write_run(tmp_path / "first", learning_rate=3e-4, samples=samples)
    said = visible(page_of(folder))
    for fact in (
        "first completed",
        "2.78 B parameters",
        "23.6 M trained (0.85%)",
        "exit status 0",
        "Training loss",
        "of 200",
        "predicted 900 MiB",
        "Measured 99.0 MiB (11.0%) below the prediction",
        "activations 100 MiB 11.1 %",
        "tokens a row p50 40, p90 60, p99 64, max 64, mean 45",
        "red 12 blue 7",
        "the sky is step 100 blue",
        "checkpoints were written after steps 100, 200",
        "learning_rate 0.0003 flag --learning_rate",
        "Settings left at their defaults",
        "memory fits: 15.1 GiB stay free",
        "lorafit train \\ --learning-rate 0.0003",
        "torch==",
    ):
        assert fact in said, fact


def test_the_curves_are_in_the_page(tmp_path):
    payload = payload_of(page_of(write_run(tmp_path, num_steps=30)))
    (run,) = payload["runs"]
    assert run["columns"]["step"] == list(range(1, 31))
    assert run["columns"]["validation_loss"].count(None) == 27
    assert payload["predicted_memory_bytes"] == 900 * 1024**2


def test_nothing_in_the_page_points_out_of_it(tmp_path):
    page = page_of(write_run(tmp_path))
    links = re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?([^"'\s)>]*)""", page)
    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    assert "connect-src &#39;none&#39;" in page
    assert "@import" not in page


@pytest.mark.parametrize("live", [False, True])
def test_the_policy_allows_exactly_the_scripts_and_styles_of_the_page(tmp_path, live):
    page = page_of(write_run(tmp_path), live=live)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    for tag in ("script", "style"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.S)
        assert len(inside) == (3 if live and tag == "script" else 2)
        for text in inside:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"sha256-{digest}" in policy
    assert "unsafe" not in policy


def test_text_of_a_run_is_text_on_the_page(tmp_path):
    folder = write_run(
        tmp_path / "<i>run</i>",
        notes=(HOSTILE,),
        samples=({"step": 1, "prompt": HOSTILE, "completion": HOSTILE},),
        prompt_template=HOSTILE.replace("\x1b", ""),
        completion_template="{x}",
    )
    page = page_of(folder)
    assert page.count("<script") == 3
    assert "<b>bold" not in page
    assert "<i>run" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert visible(page).count("<b>bold</b> </script><script>window.hacked = 1</script>") >= 4


def test_runs_over_other_rows_have_no_lowest_loss_and_say_why(tmp_path):
    folders = [
        write_run(tmp_path / "plain", scale=1.0),
        write_run(
            tmp_path / "asked", scale=0.5, prompt_template="Q: {q}", completion_template="{a}"
        ),
    ]
    said = visible(page_of(*folders))
    assert "lowest" not in said
    assert (
        "Losses of these runs do not compare: they differ in prompt_template, completion_template."
        in said
    )


def test_an_answer_of_nothing_says_so(tmp_path):
    sample = {"step": 10, "prompt": "Why?", "completion": " \n", "reference": "Because."}
    assert "step 10 (nothing)" in visible(page_of(write_run(tmp_path / "r", samples=(sample,))))


def test_several_runs_are_compared_by_results_and_settings(tmp_path):
    folders = [
        write_run(tmp_path / "low", learning_rate=1e-4, scale=1.0),
        write_run(tmp_path / "high", learning_rate=3e-4, scale=0.5, status="interrupted"),
    ]
    page = page_of(*folders)
    said = visible(page)
    assert "2 runs" in said
    assert re.search(r"low completed 200 [\d.]+ [\d.]+ [\d.]+ at \d+ [\d,]+ 801 MiB", said)
    assert re.search(r"high interrupted .*? lowest", said)
    assert "do not compare" not in said
    assert "learning_rate 0.0001 0.0003" in said
    assert "lora_r" not in said
    assert "Circumstances None." in said
    assert [run["name"] for run in payload_of(page)["runs"]] == ["low", "high"]


def test_a_run_that_goes_on_is_counted_from_its_events(tmp_path):
    said = visible(page_of(write_run(tmp_path, num_steps=50, status="running")))
    assert "running" in said
    assert "50.0 K tokens" in said.replace("50 K", "50.0 K")
    assert "Steps 50 of 200" in said


def test_a_run_that_was_stopped_before_its_first_step_has_a_page(tmp_path):
    said = visible(page_of(write_run(tmp_path, num_steps=0, status="running")))
    assert "No step was logged." in said
    assert "no validation ran" in said


def test_earlier_attempts_and_why_it_ended_are_told(tmp_path):
    folder = write_run(tmp_path, num_steps=5, notes=("continuing from checkpoint-4",))
    record = json.loads((folder / "run.json").read_text())
    record |= {
        "status": "failed",
        "failure": {"error": "the disk is full", "exit_code": 7},
        "attempts": [{"status": "interrupted", "notes": ["SIGTERM received"],
                      "started_at": "2030-01-02T03:04:05+00:00"}],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    said = visible(page_of(folder))
    assert "Why it ended: the disk is full" in said
    assert "exit status 7" in said
    assert "Attempt 1: interrupted, 2030-01-02 03:04:05 UTC SIGTERM received" in said
    assert "Attempt 2: failed" in said


@pytest.mark.parametrize(
    "change",
    [
        {"plan": {"schedule": {"total_steps": "many"}}},
        {"plan": {"memory": {"breakdown": {"weights_bytes": "x"}}}},
        {"plan": {"data": {"training": {"labels": {"counts": 3}}}}},
        {"settings": {"lora_r": 3}},
        {"results": {"checkpoints": "all"}},
        {"attempts": 3},
    ],
)
def test_a_value_that_no_run_writes_is_an_error_about_the_file(tmp_path, change):
    folder = write_run(tmp_path, num_steps=2)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | change))
    with pytest.raises(InputError, match=r"run\.json: holds a value that no run writes"):
        page_of(folder)


def test_an_old_record_with_little_in_it_still_has_a_page(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "completed"}')
    said = visible(page_of(tmp_path))
    assert "This run recorded no prediction." in said


def test_the_changing_sections_are_the_same_as_in_the_page(tmp_path):
    run = load_run(write_run(tmp_path, notes=("one", "two")))
    sections = render_sections(run)
    page = render_page([run])
    assert sections.keys() == {"summary", "memory", "samples", "timeline"}
    assert all(html in page for html in sections.values())


def test_a_file_that_is_no_report_is_never_replaced(tmp_path):
    run = load_run(write_run(tmp_path / "run"))
    output = tmp_path / "thesis.html"
    output.write_text("my thesis")
    with pytest.raises(StorageError, match="holds something else than a lorafit report"):
        write_report([run], output)
    assert output.read_text() == "my thesis"
    output.unlink()
    write_report([run], output)
    write_report([run], output)
    assert list(tmp_path.glob(".staging*")) == []


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    run = load_run(write_run(tmp_path / "run"))
    with pytest.raises(StorageError, match="cannot be written"):
        write_report([run], tmp_path / "missing" / "report.html")
