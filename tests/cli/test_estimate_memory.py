"""`lorafit estimate-memory`: the contract that scripts rely on, and what people see."""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Outcome, child_environment, start_lorafit, write_jsonl

from lorafit.cli.estimate_question import Options, ask
from lorafit.cli.estimate_view import Screen, render
from lorafit.cli.settings_flags import RunChoices

Run = Callable[..., Outcome]

TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
WIDE = {**TINY, "vocab_size": 262_144, "max_position_embeddings": 65_536}
DOCUMENT_KEYS = {
    "schema_version", "model", "hardware", "settings", "peak", "breakdown", "capacity_bytes",
    "headroom_bytes", "verdict", "calibrated", "processes", "reasons", "elapsed_seconds",
    "assumptions",
}  # fmt: skip
PARTS = ("base weights", "LoRA adapter", "gradients", "optimizer", "activations",
         "logits and loss", "kernels' scratch", "cached or fragmented",
         "device context")  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of this file: what two of them ask is traced once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(
        "lorafit.memory.cache.default_folder", lambda: cache / "lorafit" / "estimates"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a factory of folders that hold a config.json and nothing else."""

    def make(config: dict[str, Any] | None = None) -> Path:
        made = tmp_path / "model"
        made.mkdir(exist_ok=True)
        (made / "config.json").write_text(json.dumps(config or TINY))
        return made

    return make


def arguments(model: Path, *more: object) -> list[object]:
    common = ("--max-length", "32", "--batch-size", "2", "--gradient-accumulation-steps", "1")
    hardware = () if "--hardware" in more else ("--hardware", "t4")
    return ["estimate-memory", "--model", model, *common, *hardware, *more]


def answer(run: Run, *given: object, code: int = 0) -> dict[str, Any]:
    """Return the document of a `--json` call, and check what must always hold of it."""
    outcome = run(*given, "--json")
    assert outcome.code == code, outcome.err
    document: dict[str, Any] = json.loads(outcome.out)
    assert document["schema_version"] == 1
    for entry in document.get("estimates", [document]):
        process = entry["peak"]["process_bytes"]
        assert sum(entry["breakdown"].values()) == process
        assert entry["headroom_bytes"] == entry["capacity_bytes"] - process
        assert entry["peak"]["allocated_bytes"] <= entry["peak"]["reserved_bytes"] <= process
        assert (entry["verdict"] == "exceeds") == (entry["headroom_bytes"] < 0)
    return document


# -- One estimate ----------------------------------------------------------------------------


def test_document_has_what_was_promised(run_lorafit: Run, folder: Callable[..., Path]) -> None:
    document = answer(run_lorafit, *arguments(folder(), "--hardware", "a10g"))
    assert set(document) == DOCUMENT_KEYS
    assert set(document["peak"]) == {"allocated_bytes", "reserved_bytes", "process_bytes", "phase"}
    assert document["verdict"] == "fits"
    assert document["settings"]["max_length"] == 32
    assert document["settings"]["per_device_train_batch_size"] == 2
    assert document["hardware"]["key"] == "a10g"
    assert document["calibrated"] is False
    assert all(type(size) is int for size in document["breakdown"].values())
    assert any("32 tokens" in line for line in document["assumptions"])


@pytest.mark.parametrize(
    ("flags", "setting", "value"),
    [
        (["--max-grad-norm", "0"], "max_grad_norm", 0),
        (["--attn-implementation", "sdpa-efficient"], "attn_implementation", "sdpa-efficient"),
        (["--attn_implementation=eager"], "attn_implementation", "eager"),
        (["--kernels", "stock"], "kernels", "stock"),
        (["--optim", "paged_adamw_8bit"], "optim", "paged_adamw_8bit"),
        (["--lora-rank", "4"], "lora_r", 4),
        (["--quantization", "nf4", "--double-quant"], "quantization", "nf4"),
        (["--no-gradient-checkpointing"], "gradient_checkpointing", False),
        (["lora.r=4"], "lora_r", 4),
    ],
)
def test_every_setting_is_a_flag_under_all_its_names(
    run_lorafit: Run, folder: Callable[..., Path], flags: list[str], setting: str, value: object
) -> None:
    document = answer(run_lorafit, *arguments(folder(), *flags))
    assert document["settings"][setting] == value


def test_an_effective_batch_sets_the_accumulation(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    given = ("--model", folder(), "--hardware", "t4", "--max-length", "32")
    document = answer(
        run_lorafit, "estimate-memory", *given, "--micro-batch-size", 2, "--effective-batch-size", 6
    )
    assert document["settings"]["gradient_accumulation_steps"] == 3


@pytest.mark.parametrize("hardware", ["t4", "A100-40GB", "rtx-4080", "m3-18gb", "cpu"])
def test_hardware_is_named_as_in_the_catalog(
    run_lorafit: Run, folder: Callable[..., Path], hardware: str
) -> None:
    document = answer(run_lorafit, *arguments(folder(), "--hardware", hardware))
    assert document["hardware"]["key"] == hardware.lower()


def test_the_machine_itself_is_asked_without_a_name(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    model = folder()
    document = answer(run_lorafit, *arguments(model, "--hardware", "auto", "--device", "cpu"))
    assert document["hardware"]["kind"] == "cpu"
    assert document["hardware"]["detected"] is True


def test_run_that_does_not_fit_ends_with_exit_code_4(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    given = arguments(folder(WIDE), "--kernels", "stock", "--micro-batch-size", "256")
    given[3:7] = ["--max-length", "256"]
    document = answer(run_lorafit, *given, code=4)
    assert document["verdict"] == "exceeds"
    assert "advice" not in document


def test_stock_kernels_keep_the_logits_that_training_in_lorafit_frees(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    model = folder()
    ours = answer(run_lorafit, *arguments(model))
    plain = answer(run_lorafit, *arguments(model, "--kernels", "stock"))
    assert ours["peak"]["allocated_bytes"] < plain["peak"]["allocated_bytes"]
    assert any("plain transformers" in line for line in plain["assumptions"])


# -- What people see -------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_bar_and_legend_fit_the_screen_without_colours(
    folder: Callable[..., Path], width: int, is_ascii: bool
) -> None:
    flags = {"model": str(folder()), "max_length": "32", "per_device_train_batch_size": "2",
             "gradient_accumulation_steps": "1"}  # fmt: skip
    question = ask(RunChoices(hardware="t4", flags=flags), Options())
    screen = Screen(width, has_colours=False, is_ascii=is_ascii)
    shown = render(question.estimate(), screen, question.assumptions()).plain
    assert shown.isascii() == is_ascii
    subject, *lines = shown.splitlines()
    assert subject == f"{flags['model']} on NVIDIA T4"
    assert max(map(len, lines)) <= width
    bar = next(line for line in lines if re.fullmatch(r"  [A-Z]*[░.]+ \d+%", line))
    assert set(re.sub(r"[^A-Z]", "", bar)) <= set("WLGOAVKFC")
    for words in (*PARTS, "headroom", "capacity", "fits: "):
        assert words in shown
    assert "every row is as long as max_length, 32 tokens" in " ".join(shown.split())


@pytest.mark.parametrize(("locale", "is_ascii"), [("C", True), ("en_US.UTF-8", False)])
def test_a_c_locale_gets_plain_letters_only(
    run_lorafit: Run,
    folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    locale: str,
    is_ascii: bool,
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    outcome = run_lorafit(*arguments(folder()))
    assert outcome.code == 0
    assert outcome.out.isascii() == is_ascii


def test_colours_take_the_place_of_letters(run_lorafit: Run, folder: Callable[..., Path]) -> None:
    model = folder()
    answer(run_lorafit, *arguments(model))
    changes = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor",
               "LC_ALL": "C.UTF-8"}  # fmt: skip
    process = start_lorafit(*arguments(model), **changes)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "\x1b[38;2;68;119;170m" in out
    assert "█" in out
    assert "  W base weights" not in out


def test_what_exceeds_is_told_what_to_change_first(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    given = ("estimate-memory", "--model", folder(WIDE), "--hardware", "t4", "--batch-size", "64",
             "--max-length", "512", "--kernels", "stock")  # fmt: skip
    shown = run_lorafit(*given)
    assert shown.code == 4
    assert "exceeds: " in shown.out
    assert re.search(r"(capacity 14\.6 GiB \^|\^ capacity 14\.6 GiB)", shown.out)
    assert "what to change first" in shown.out
    assert "    --kernels lorafit\n" in shown.out
    document = answer(run_lorafit, *given, "--advice", code=4)
    changes = document["advice"]["changes"]
    assert changes[0]["flags"] == "--kernels lorafit"
    assert all(change["saved_bytes"] > 0 for change in changes)
    for change in changes:
        assert change["flags"] in shown.out
    assert "what to change first" not in run_lorafit(*given, "--no-advice").out


# -- Many estimates --------------------------------------------------------------------------


def test_presets_stand_side_by_side(run_lorafit: Run, folder: Callable[..., Path]) -> None:
    given = ("estimate-memory", "--model", folder({**TINY, "max_position_embeddings": 2048}),
             "--hardware", "a10g", "--compare", "high,balanced,low")  # fmt: skip
    document = answer(run_lorafit, *given)
    entries = document["estimates"]
    assert [entry["preset"] for entry in entries] == ["high", "balanced", "low"]
    assert [entry["settings"]["max_length"] for entry in entries] == [2048, 1024, 768]
    shown = run_lorafit(*given)
    assert shown.code == 0
    assert shown.out.split()[:3] == ["high", "balanced", "low"]
    assert "A10G" in shown.err


def test_sweep_lists_every_value(run_lorafit: Run, folder: Callable[..., Path]) -> None:
    given = arguments(folder(), "--sweep", "lora_rank=2..8")
    document = answer(run_lorafit, *given)
    assert document["sweep"] == {"name": "lora_r", "values": ["2", "4", "8"]}
    assert [entry["settings"]["lora_r"] for entry in document["estimates"]] == [2, 4, 8]
    adapters = [entry["breakdown"]["adapter_bytes"] for entry in document["estimates"]]
    assert adapters == sorted(set(adapters))
    shown = run_lorafit(*given)
    assert [line.split()[0] for line in shown.out.splitlines()[2:]] == ["2", "4", "8"]


def test_sweep_over_switches_and_devices(run_lorafit: Run, folder: Callable[..., Path]) -> None:
    model = folder()
    given = arguments(model, "--sweep", "gradient_checkpointing=true,false")
    switched = answer(run_lorafit, *given)["estimates"]
    values = [entry["settings"]["gradient_checkpointing"] for entry in switched]
    assert values == [True, False]
    devices = answer(run_lorafit, *arguments(model, "--sweep", "hardware=t4,m3-18gb"))["estimates"]
    assert [entry["hardware"]["key"] for entry in devices] == ["t4", "m3-18gb"]


def test_sweep_value_out_of_range_is_refused_by_its_setting(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    outcome = run_lorafit(*arguments(folder(), "--sweep", "lora_r=128..1024"))
    assert outcome.code == 2
    assert "512" in outcome.err
    assert "from 1 to 256" in outcome.err


def test_largest_micro_batch_fits_and_one_more_does_not(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    model = folder({**WIDE, "hidden_size": 32})
    given = ("estimate-memory", "--model", model, "--hardware", "t4", "--max-length", "512",
             "--kernels", "stock")  # fmt: skip
    document = answer(run_lorafit, *given, "--max-batch")
    largest = document["max_per_device_train_batch_size"]
    by_rows = {
        entry["settings"]["per_device_train_batch_size"]: entry["verdict"]
        for entry in document["estimates"]
    }
    assert by_rows[largest] in ("fits", "tight")
    assert by_rows[largest + 1] == "exceeds"
    shown = run_lorafit(*given, "--max-batch")
    assert shown.code == 0
    assert f"the largest micro-batch that fits: {largest}" in shown.out


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_timeline_is_drawn_and_named(
    run_lorafit: Run, folder: Callable[..., Path], tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"memory.{suffix}"
    document = answer(run_lorafit, *arguments(folder(), "--timeline", file))
    assert document["timeline"] == str(file)
    assert file.stat().st_size > 10_000


# -- Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hardware", "a10gg"], "did you mean a10g?"),
        (["--compare", "high,balancd", "--hardware", "t4"], "did you mean balanced?"),
        (["--sweep", "nothing=1", "--hardware", "t4"], "there is no such setting"),
        (["--sweep", "learning_rate=1e-4,2e-4", "--hardware", "t4"], "does not change what a run"),
        (["--sweep", "max_length=32", "--max-batch"], "ask different questions"),
        (["--max-batch", "--advice"], "--advice is about one run"),
        (["--preset", "high", "--compare", "low"], "both name presets"),
        (["--timeline", "memory.pdf"], "ends with none of"),
        (["--timeline", ""], "--timeline is empty"),
        (["--compare", ""], "--compare is empty"),
    ],
)
def test_wrong_command_line_ends_with_exit_code_2(
    run_lorafit: Run, folder: Callable[..., Path], flags: list[str], words: str
) -> None:
    outcome = run_lorafit("estimate-memory", "--model", folder(), *flags)
    assert outcome.code == 2
    assert outcome.out == ""
    assert words in outcome.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hardware", "m3-18gb", "--optim", "paged_adamw_8bit"], "need CUDA's unified memory"),
        (["--attn-implementation", "flash_attention_2"], "capability 8.0 or later"),
        (["--compute-dtype", "bfloat16"], "cannot compute in bfloat16"),
    ],
)
def test_device_that_cannot_honour_a_setting_ends_with_exit_code_4(
    run_lorafit: Run, folder: Callable[..., Path], flags: list[str], words: str
) -> None:
    outcome = run_lorafit(*arguments(folder(), *flags))
    assert outcome.code == 4
    assert words in outcome.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no config.json"),
        ("{", "is not JSON"),
        ("[]", "names no model_type"),
        ('{"model_type": "t5"}', "is not a causal language model"),
        ('{"model_type": "llama", "auto_map": {"x": "y"}}', "asks to run code of its own"),
    ],
)
def test_model_folder_that_is_none_ends_with_exit_code_3(
    run_lorafit: Run, tmp_path: Path, content: str | None, words: str
) -> None:
    model = tmp_path / "bad"
    model.mkdir()
    if content is not None:
        (model / "config.json").write_text(content)
    outcome = run_lorafit(*arguments(model))
    assert outcome.code == 3
    assert words in outcome.err


def test_rows_longer_than_the_model_can_read_are_refused_as_in_training(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    given = ("estimate-memory", "--model", folder(), "--hardware", "t4", "--max-length", "512")
    outcome = run_lorafit(*given)
    assert outcome.code == 3
    assert "more than the 256 positions" in outcome.err
    assert run_lorafit(*given, "--kernels", "stock").code == 0


def test_model_that_is_nowhere_ends_with_exit_code_3(run_lorafit: Run, tmp_path: Path) -> None:
    outcome = run_lorafit(*arguments(tmp_path / "missing"))
    assert outcome.code == 3
    assert "missing" in outcome.err


def test_hub_model_without_a_network_ends_soon_and_names_what_is_known(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = start_lorafit(
        "estimate-memory", "--model", "someone/unknown-model", HF_HOME=str(tmp_path)
    )
    out, err = process.communicate(timeout=600)
    assert process.returncode == 3
    assert out == ""
    assert "HF_HUB_OFFLINE" in err
    assert "microsoft/phi-2" in err
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


# -- Speed -----------------------------------------------------------------------------------

_ASK_AGAIN = """
import sys, time
start = time.process_time()
from lorafit.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {"torch", "transformers", "peft", "numpy", "matplotlib", "bitsandbytes"} & set(sys.modules)
assert not heavy, heavy
assert time.process_time() - start < 3, time.process_time() - start
"""


def test_repeated_question_loads_no_heavy_library(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    given = [str(word) for word in arguments(folder(), "--json")]
    first = run_lorafit(*given)
    again = subprocess.run(
        [sys.executable, "-c", _ASK_AGAIN, *given],
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(first.out)


def test_fast_answers_by_the_contract_and_says_what_it_is(run_lorafit):
    question = ("estimate-memory", "--preset", "balanced", "--hardware", "a10g", "--fast")
    outcome = run_lorafit(*question, "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    peak = document["peak"]
    assert sum(document["breakdown"].values()) == peak["process_bytes"]
    assert document["headroom_bytes"] == document["capacity_bytes"] - peak["process_bytes"]
    assert document["verdict"] == "fits"
    assert any("closed form" in reason for reason in document["reasons"])
    # 5.18 GiB of weights, the lowest that any estimate of Phi-2 in 16 bit may say.
    assert peak["allocated_bytes"] > 5.18 * 1024**3


def test_fast_exceeds_with_exit_code_4(run_lorafit):
    outcome = run_lorafit(
        *("estimate-memory", "--model", "mistralai/Mistral-7B-v0.1", "--hardware", "t4", "--fast")
    )
    assert outcome.code == 4, outcome.err
    assert "exceeds" in outcome.out


def test_fast_refuses_a_plain_script_that_it_does_not_know(run_lorafit):
    outcome = run_lorafit("estimate-memory", "--hardware", "a10g", "--fast", "--kernels", "stock")
    assert outcome.code == 2
    assert "leave --fast out" in outcome.err


# -- Several processes -----------------------------------------------------------------------


def test_several_processes_are_estimated_one_by_one(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    alone = answer(run_lorafit, *arguments(folder()))
    assert alone["processes"] == {"count": 1, "parallelism": "none"}
    each = answer(run_lorafit, *arguments(folder(), "--num-processes", "2"))
    assert each["processes"]["count"] == 2
    assert each["processes"]["parallelism"] == "ddp"
    more = each["peak"]["allocated_bytes"] - alone["peak"]["allocated_bytes"]
    assert more == each["processes"]["exchange_bytes"] > 0
    assert "which the 14.6 GiB of NVIDIA T4 hold" in each["reasons"][-2]
    assert any("on each of 2 devices" in line for line in each["assumptions"])


@pytest.mark.parametrize("how", [(), ("--fast",)])
def test_weights_are_shared_where_one_device_cannot_hold_them(
    run_lorafit: Run, folder: Callable[..., Path], how: tuple[str, ...]
) -> None:
    # 16 GiB of weights in 16 bit: more than a T4 has.
    large = {**TINY, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32}
    asked = arguments(folder({**large, "num_key_value_heads": 4}), *how, "--hardware", "t4")
    alone = answer(run_lorafit, *asked, code=4)
    each = answer(run_lorafit, *asked, "--num-processes", "4")
    assert each["processes"]["parallelism"] == "fsdp"
    weights = alone["breakdown"]["weights_bytes"]
    assert weights / 4 <= each["breakdown"]["weights_bytes"] < weights / 3
    assert 0 < each["breakdown"]["gathered_bytes"] < weights / 4
    assert "with 1/4 of the base weights it takes" in each["reasons"][-2]
    shown = run_lorafit(*asked, "--num-processes", "4")
    assert "on each of 4 x NVIDIA T4" in shown.out
    assert "gathered weights" in shown.out
    assert "peak per device" in shown.out


def test_weights_cannot_be_shared_with_nobody(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    outcome = run_lorafit(*arguments(folder(), "--parallelism", "fsdp"))
    assert outcome.code == 2
    assert "--num-processes 2" in outcome.err


def test_an_effective_batch_is_split_over_the_processes(
    run_lorafit: Run, folder: Callable[..., Path]
) -> None:
    split = ["estimate-memory", "--model", folder(), "--hardware", "t4", "--max-length", "32",
             "--effective-batch-size", "16", "--batch-size", "2"]  # fmt: skip
    document = answer(run_lorafit, *split, "--num-processes", "4")
    assert document["settings"]["gradient_accumulation_steps"] == 2
    outcome = run_lorafit(*split, "--num-processes", "3")
    assert outcome.code == 2
    assert "cannot be split over 3 devices" in outcome.err


# -- What a preset leaves to the planner -------------------------------------------------------


@pytest.fixture
def preset_question(tiny_model: Callable[..., Path], tmp_path: Path) -> list[object]:
    """Flags of a run whose preset has no row for the device, on rows that all fill max_length."""
    rows = [{"prompt": "red", "completion": " blue" * 80} for _ in range(64)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    return [
        *("--preset", "balanced", "--model", tiny_model("phi"), "--hardware", "t4"),
        *("--max-length", 64, "--data", data, "--output-dir", tmp_path / "run"),
    ]


@pytest.mark.parametrize("asked", [[], ["--effective-batch-size", "12"], ["--batch-size", "2"]])
def test_train_and_estimate_memory_tell_the_same_micro_batch(
    run_lorafit: Run, preset_question: list[object], asked: list[str]
) -> None:
    planned = run_lorafit("train", *preset_question, *asked, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    plan = json.loads(planned.out)
    estimate = answer(run_lorafit, "estimate-memory", *preset_question, *asked)
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        assert estimate["settings"][name] == plan["batch"][name]
    for name in ("gradient_checkpointing", "checkpointed_layers"):
        assert estimate["settings"][name] == plan["settings"][name]
    assert estimate["peak"]["process_bytes"] == plan["memory"]["process_bytes"]
    is_planned = any(line.startswith("planned for rows") for line in estimate["assumptions"])
    assert is_planned == ("planner" in plan["reasons"])


def test_fast_plans_too_without_tracing(
    run_lorafit: Run, preset_question: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("--fast traces nothing")

    monkeypatch.setattr("lorafit.memory.estimate.estimate_memory", refuse)
    document = answer(run_lorafit, "estimate-memory", *preset_question, "--fast")
    assert document["settings"]["per_device_train_batch_size"] > 1
    assert any(line.startswith("planned for rows") for line in document["assumptions"])


def test_the_largest_micro_batch_is_of_the_settings_that_were_asked_for(
    run_lorafit: Run, preset_question: list[object]
) -> None:
    outcome = run_lorafit("estimate-memory", *preset_question, "--max-batch", "--fast", "--json")
    assert outcome.code == 0, outcome.err
    settings = [entry["settings"] for entry in json.loads(outcome.out)["estimates"]]
    assert all(each["gradient_checkpointing"] for each in settings)
