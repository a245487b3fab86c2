"""`lorafit export`: what is written, what it is worth, and what is refused."""

import json
import re

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorafit.model.weights import read_weight_files


def change_record(run, **changes):
    path = run / "run.json"
    record = json.loads(path.read_text())
    for key, value in changes.items():
        target = record
        *parents, last = key.split("__")
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(record))


def logits_of(model):
    return model.eval()(torch.tensor([[5, 9, 30, 31, 40]])).logits.detach()


def test_merged_weights_are_a_plain_model_that_equals_base_plus_adapter(run_lorafit, own_run):
    outcome = run_lorafit("export", own_run, "--device", "cpu", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    merged = own_run / "merged"
    assert document["schema_version"] == 1
    assert document["output_dir"] == str(merged)
    assert document["dtype"] == "float32"
    assert not document["dequantized"]
    drift = document["drift"]
    assert drift["divergence"] < 1e-6 < drift["adapter_effect"]
    assert drift["same_choice"] == 1.0
    from peft import AutoPeftModelForCausalLM

    pair = AutoPeftModelForCausalLM.from_pretrained(own_run / "adapter")
    alone = AutoModelForCausalLM.from_pretrained(merged)
    assert torch.allclose(logits_of(pair), logits_of(alone), atol=1e-4)
    base = json.loads((own_run / "run.json").read_text())["settings"]["model"]["value"]
    text = "the colour of thing 3 is"
    ids = [AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for folder in (merged, base)]
    assert ids[0] == ids[1]
    assert list(own_run.glob(".staging*")) == []


def test_the_words_name_the_drift_and_what_comes_next(run_lorafit, own_run, tmp_path):
    target = tmp_path / "out" / "my model"
    outcome = run_lorafit("export", own_run, "--device", "cpu", "--output-dir", target)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{target}\n"
    assert re.search(r"over \d+ tokens the merged model differs .* nats a token", outcome.err)
    assert f"lorafit chat --model '{target}'" in outcome.err


def test_the_card_holds_results_data_settings_and_the_drift(run_lorafit, own_run):
    assert run_lorafit("export", own_run, "--device", "cpu").code == 0
    card = (own_run / "merged" / "README.md").read_text()
    record = json.loads((own_run / "run.json").read_text())
    facts = yaml.safe_load(card.split("---")[1])
    assert facts["tags"] == ["lorafit", "lora", "phi"]
    assert "base_model" not in facts
    assert card.split("---\n")[2].startswith("\n# first\n")
    assert f"| training loss, last | {record['results']['final_loss']:.4f} |" in card
    assert f"| SHA-256 | {record['plan']['data']['sha256']} |" in card
    assert "| lora_r | 8 |" in card or "| lora_r | 16 |" in card
    assert "the merged model differs from base plus adapter by" in card
    assert str(own_run.parent) not in card
    assert "/" not in re.search(r"\| source \| (.*) \|", card).group(1)


def test_a_hub_base_is_linked(own_run):
    from lorafit.config.schema import Settings
    from lorafit.export.card import model_card
    from lorafit.export.plan import ExportPlan, recorded_run
    from lorafit.hardware.detect import detect_device
    from lorafit.model.source import locate_model

    change_record(own_run, settings__data__value="someone/their-data")
    adapter = own_run / "adapter"
    record = recorded_run(adapter)
    source = locate_model(record["settings"]["model"]["value"])
    settings = Settings(model="someone/base-model", prompt_template="a ``` b {x}",
                        completion_template="{y}")  # fmt: skip
    plan = ExportPlan(settings, detect_device("cpu"), source, adapter, own_run / "export", record)
    card = model_card(plan)
    facts = yaml.safe_load(card.split("---")[1])
    assert facts["base_model"] == "someone/base-model"
    assert facts["base_model_relation"] == "adapter"
    assert facts["datasets"] == ["someone/their-data"]
    assert "````text\na ``` b {x}\n````" in card


def test_a_quantized_base_is_dequantized_with_a_warning(run_lorafit, own_run):
    outcome = run_lorafit(
        *("export", own_run, "--device", "cpu", "--quantization", "nf4", "--json")
    )
    assert outcome.code == 0, outcome.err
    assert "warning: the adapter was trained on the base in nf4" in outcome.err
    document = json.loads(outcome.out)
    assert document["dequantized"]
    assert document["drift"]["divergence"] < 0.1 * document["drift"]["adapter_effect"]
    weights = read_weight_files(own_run / "merged")
    assert weights.stored_dtype == "float32"
    assert "quantization_config" not in (own_run / "merged" / "config.json").read_text()


def test_a_merge_that_loses_the_adapter_writes_nothing(run_lorafit, own_run, monkeypatch):
    monkeypatch.setattr("lorafit.model.merge.merge_adapter", lambda model: model.unload())
    outcome = run_lorafit("export", own_run, "--device", "cpu")
    assert outcome.code == 3
    assert "the merge loses 100% of what the adapter does" in outcome.err
    assert "lorafit export --no-merge" in outcome.err
    assert not (own_run / "merged").exists()
    assert list(own_run.glob(".staging*")) == []


def test_the_adapter_alone_is_copied_with_a_card(run_lorafit, own_run):
    outcome = run_lorafit("export", own_run, "--no-merge", "--device", "cpu", "--json")
    assert outcome.code == 0, outcome.err
    folder = own_run / "export"
    assert json.loads(outcome.out) == {
        "schema_version": 1, "kind": "adapter", "output_dir": str(folder)
    }  # fmt: skip
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / name).read_bytes() == (own_run / "adapter" / name).read_bytes()
    assert "library_name: peft" in (folder / "README.md").read_text()
    assert (folder / "tokenizer.json").is_file()


def test_a_folder_with_something_in_it_is_left_alone(run_lorafit, own_run):
    (own_run / "merged").mkdir()
    (own_run / "merged" / "thesis.txt").write_text("mine")
    outcome = run_lorafit("export", own_run, "--device", "cpu")
    assert outcome.code == 7
    assert "the folder is not empty, and nothing in it is replaced" in outcome.err
    assert [path.name for path in (own_run / "merged").iterdir()] == ["thesis.txt"]


def test_a_disk_that_is_too_small_is_found_before_anything_is_loaded(
    run_lorafit, own_run, monkeypatch
):
    monkeypatch.setattr("lorafit.export.plan.free_bytes", lambda path: 1000)
    outcome = run_lorafit("export", own_run, "--device", "cpu")
    assert outcome.code == 7
    assert "the export takes 256 MiB, and 1000 B are free" in outcome.err


def test_a_place_that_cannot_be_written_is_a_storage_error(run_lorafit, own_run, tmp_path):
    (tmp_path / "file").write_text("a file")
    outcome = run_lorafit(
        *("export", own_run, "--no-merge", "--device", "cpu"),
        *("--output-dir", tmp_path / "file" / "out"),
    )
    assert outcome.code == 7
    assert "the export could not be written: Not a directory" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the run or the adapter"),
        (["RUN", "--adapter", "x"], "name the run or the adapter, not both"),
        ([""], "RUN is empty"),
        (["RUN", "--output-dir", ""], "--output-dir is empty"),
        (["RUN", "--no-merge", "--ollama"], "--no-merge makes none"),
        (["RUN", "--gguf", "nowhere"], "there is no convert_hf_to_gguf.py"),
        (["RUN", "--push", "a/b/c"], "is not a repository id"),
        (["RUN", "--push", "me/model"], "HF_HUB_OFFLINE is set"),
        (["RUN", "--gguf-type", "q1"], "Invalid value"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_done_is_refused_at_once(run_lorafit, trained, arguments, message):
    outcome = run_lorafit("export", *(trained if one == "RUN" else one for one in arguments))
    assert outcome.code == 2
    assert message in outcome.err
    assert not (trained / "merged").exists()


def test_an_adapter_without_its_run_needs_the_base(run_lorafit, own_run, tiny_model, tmp_path):
    adapter = (own_run / "adapter").rename(tmp_path / "alone")
    outcome = run_lorafit(
        *("export", "--adapter", adapter, "--model", tiny_model(), "--device", "cpu"),
        *("--output-dir", tmp_path / "out"),
    )
    assert outcome.code == 0, outcome.err
    assert "## Results" not in (tmp_path / "out" / "README.md").read_text()


CONVERTER = """
import argparse, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype")
asked = parser.parse_args()
if asked.outtype == "q8_0":
    sys.exit("Traceback ...\\nthis tokenizer is not known \\x1b[31m\\n")
if asked.outtype == "f32":
    import a_module_that_is_not_there
assert (asked.model / "model.safetensors").is_file()
asked.outfile.write_bytes(b"GGUF" + asked.outtype.encode())
"""


@pytest.fixture
def llama_cpp(tmp_path):
    """A folder with a converter of llama.cpp's command line, which writes little."""
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    return folder


def test_gguf_and_modelfile_come_beside_the_weights(run_lorafit, own_run, llama_cpp):
    outcome = run_lorafit(
        *("export", own_run, "--device", "cpu", "--gguf", llama_cpp, "--gguf-type", "f16"),
        *("--ollama", "--json"),
    )
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    merged = own_run / "merged"
    assert document["gguf"] == str(merged / "merged.gguf")
    assert (merged / "merged.gguf").read_bytes() == b"GGUFf16"
    assert (merged / "Modelfile").read_text() == (
        "# TEMPLATE: the rows are plain prompts, so what is typed is sent as it is\n"
        "FROM ./merged.gguf\n"
        'TEMPLATE """{{ .Prompt }}"""\n'
        'PARAMETER stop "<|endoftext|>"\n'
    )
    assert "ollama create my-model -f Modelfile" in outcome.err


@pytest.mark.parametrize(
    ("kind", "said", "hint"),
    [
        ("q8_0", "this tokenizer is not known \\x1b[31m", "it may not know this architecture"),
        ("f32", "No module named 'a_module_that_is_not_there'", "install what it needs: pip"),
    ],
)
def test_a_converter_that_fails_is_quoted_and_the_weights_stay(
    run_lorafit, own_run, llama_cpp, kind, said, hint
):
    outcome = run_lorafit(
        *("export", own_run, "--device", "cpu", "--gguf", llama_cpp, "--gguf-type", kind)
    )
    assert outcome.code == 3
    assert "llama.cpp's converter failed (exit status 1): " in outcome.err
    assert said in outcome.err
    assert f"hint: {hint}" in outcome.err
    assert (own_run / "merged" / "model.safetensors").is_file()
    assert list((own_run / "merged").glob("*.gguf")) == []


def test_conversations_get_their_chat_template_and_modelfile(run_lorafit, own_run):
    change_record(
        own_run, plan__data__training__kind="messages", settings__chat_template__value="chatml"
    )
    outcome = run_lorafit("export", own_run, "--device", "cpu", "--ollama")
    assert outcome.code == 0, outcome.err
    merged = own_run / "merged"
    shown = AutoTokenizer.from_pretrained(merged).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert shown == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    text = (merged / "Modelfile").read_text()
    assert "{{ range .Messages }}<|im_start|>{{ .Role }}\n" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "warning: Ollama reads no safetensors of phi models" in outcome.err
