"""`lorafit report`, and the report that every run writes."""

import json
import shutil
import subprocess

import pytest
from made_runs import made_facts, write_run


def words_of(command):
    """Return the words that a shell makes of a command."""
    script = "printf '%s\\0' " + command
    found = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    return found.stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def trained(kept, run_lorafit, train_arguments, tmp_path_factory):
    """A run folder that a real training left."""
    if "run" not in kept:
        folder = tmp_path_factory.mktemp("kept") / "run"
        outcome = run_lorafit(*train_arguments(folder, max_steps=4))
        assert outcome.code == 0, outcome.err
        kept["run"] = folder
    return kept["run"]


def test_every_run_writes_its_report(trained):
    page = (trained / "report.html").read_text()
    record = json.loads((trained / "run.json").read_text())
    assert '<span class="status good">completed</span>' in page
    assert f"{record['results']['final_loss']:.4f}" in page
    assert record["plan"]["data"]["sha256"] in page


def test_the_made_runs_of_these_tests_have_the_shape_of_a_real_one(trained, tmp_path):
    real = json.loads((trained / "run.json").read_text())

    def lacking(made, real, where):
        for name, value in made.items():
            if name not in real:
                yield f"{where}{name}"
            elif isinstance(value, dict) and isinstance(real[name], dict):
                yield from lacking(value, real[name], f"{where}{name}.")

    assert list(lacking(made_facts(tmp_path), real, "")) == []


def test_an_interrupted_run_has_a_report_that_says_so(
    run_lorafit, train_arguments, monkeypatch, tmp_path
):
    from lorafit.errors import RunInterruptedError
    from lorafit.training.trainer import LoraTrainer

    def interrupt(self, *arguments, **options):
        raise RunInterruptedError("SIGTERM received: saved at step 2 of 6")

    monkeypatch.setattr(LoraTrainer, "train", interrupt)
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 75
    page = (tmp_path / "run" / "report.html").read_text()
    assert "SIGTERM received: saved at step 2 of 6" in page
    assert "exit status 75" in page


def test_a_report_that_cannot_be_written_costs_nothing_but_itself(
    run_lorafit, train_arguments, tmp_path
):
    from lorafit.report.html import write

    (tmp_path / "run").mkdir()
    arguments = train_arguments(tmp_path / "run", max_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "render_page", lambda runs: {}["a bug"])
        outcome = run_lorafit(*arguments)
    assert outcome.code == 0, outcome.err
    assert "report.html was not written: 'a bug'" in outcome.err
    assert (tmp_path / "run" / "adapter").is_dir()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "completed"


def test_the_command_in_the_report_repeats_the_settings(run_lorafit, trained):
    from lorafit.report.html.reproduce import reproduce_command, shell_lines

    settings = json.loads((trained / "run.json").read_text())["settings"]
    words = reproduce_command(settings)
    assert words_of(shell_lines(words)) == words
    shown = json.loads(run_lorafit("config", "show", "--json", *words[2:]).out)["settings"]
    again = {name: entry["value"] for name, entry in shown.items()}
    meant = {name: entry["value"] for name, entry in settings.items()}
    assert again | {"output_dir": None} == meant | {"output_dir": None}


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt_template", "-- {a}\n'quoted' $HOME"), ("learning_rate", 1.1e-4), ("use_dora", True),
     ("double_quant", False), ("target_modules", ["q_proj", "fc1"]), ("lora_alpha", 32.0)],
)  # fmt: skip
def test_any_kind_of_value_survives_the_shell(run_lorafit, name, value):
    from lorafit.report.html.reproduce import reproduce_command, shell_lines

    settings = {name: {"value": value, "origin": "mine.yaml:3"}}
    if name == "prompt_template":
        settings["completion_template"] = {"value": "{b}", "origin": "mine.yaml:4"}
    words = words_of(shell_lines(reproduce_command(settings)))
    shown = run_lorafit("config", "show", "--json", *words[2:])
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["settings"][name]["value"] == value


def test_report_writes_beside_the_run_and_says_where(run_lorafit, trained):
    (trained / "report.html").unlink()
    outcome = run_lorafit("report", trained)
    assert outcome.code == 0
    assert outcome.out == f"{trained / 'report.html'}\n"
    assert f"lorafit serve {trained}" in outcome.err
    assert (trained / "report.html").is_file()


def test_report_compares_runs_in_one_json_document(run_lorafit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [write_run(tmp_path / name, lora_r=r) for name, r in (("a", 8), ("b", 64))]
    outcome = run_lorafit("report", *folders, "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["schema_version"] == 1
    assert document["output"] == "comparison.html"
    assert (tmp_path / "comparison.html").is_file()
    assert [run["name"] for run in document["runs"]] == ["a", "b"]
    assert document["runs"][0]["results"]["steps"] == 200
    assert document["differences"]["settings"] == {"lora_r": ["8", "64"]}


def test_a_run_named_twice_is_reported_once(run_lorafit, tmp_path):
    folder = write_run(tmp_path / "a")
    outcome = run_lorafit("report", folder, folder)
    assert outcome.code == 0
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing"], 3, "there is no such folder, so it is not a run"),
        (["run", "--output", ""], 2, "--output is empty"),
        (["run", "--output", "run"], 7, "holds something else"),
        ([], 2, "Missing argument"),
    ],
)
def test_report_says_what_is_wrong(run_lorafit, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", num_steps=1)
    outcome = run_lorafit("report", *arguments)
    assert outcome.code == code
    assert message in outcome.err


def test_the_vendored_library_is_what_its_readme_says():
    import hashlib
    from importlib import resources

    folder = resources.files("lorafit.report.html").joinpath("vendor/uplot")
    readme = folder.joinpath("README.md").read_text()
    for name in ("uPlot.iife.min.js", "uPlot.min.css"):
        digest = hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest()
        assert f"| {name} | {digest} |" in readme
    assert "(v1.6.32)" in folder.joinpath("uPlot.iife.min.js").read_text()[:60]
    assert "MIT License" in folder.joinpath("LICENSE").read_text()


def test_a_report_is_small(trained, tmp_path):
    long_run = write_run(tmp_path / "long", num_steps=5000)
    shutil.copy(trained / "run.json", long_run / "run.json")
    from lorafit.report.html.render import render_page
    from lorafit.report.html.source import load_run

    assert len(render_page([load_run(long_run)])) < 600_000
