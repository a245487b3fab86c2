"""Rows B33 and B52 to B59: a base model that is not what it should be."""

import contextlib
import json
import shutil
import time
from pathlib import Path

import pytest
from tiny import write_jsonl

from lorafit.errors import ExitCode, ModelError
from lorafit.model.source import locate_model


def refusal(folder, **options):
    with pytest.raises(ModelError) as caught:
        locate_model(str(folder), **options)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    return str(caught.value), caught.value.hint or ""


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tokenizer(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(folder):
    """Turn a model into one with an index of two shards."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in halves.items():
        save_file({n: tensors[n] for n in members}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, members in halves.items() for name in members}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_a_good_folder_is_taken_with_its_counts(tiny_model):
    source = locate_model(str(tiny_model()))
    assert source.model_type == "phi"
    assert source.weights.stored_dtype == "float32"
    assert source.weights.num_bytes == 4 * source.weights.num_parameters


def test_shards_count_like_one_file(own_model, tiny_model):
    folder = own_model()
    shard(folder)
    whole = locate_model(str(tiny_model())).weights
    parts = locate_model(str(folder)).weights
    assert len(parts.files) == 2
    assert (parts.num_parameters, parts.num_bytes) == (whole.num_parameters, whole.num_bytes)


@pytest.mark.row("B52")
def test_b52_a_missing_folder_suggests_its_neighbour(own_model):
    folder = own_model()
    text, hint = refusal(folder.parent / "own-modle")
    assert "there is no model folder" in text
    assert hint == f"did you mean {folder}?"


@pytest.mark.row("B52")
def test_b52_a_file_is_not_a_folder(own_model):
    folder = own_model()
    text, hint = refusal(folder / "model.safetensors")
    assert "is a file; a model is a folder with config.json and safetensors" in text
    assert hint == f"name the folder: --model {folder}"


@pytest.mark.row("B52")
def test_b52_a_folder_without_config_lists_what_it_has(own_model):
    folder = own_model()
    (folder / "config.json").unlink()
    text, _ = refusal(folder)
    assert "has no config.json (found: generation_config.json, model.safetensors" in text


@pytest.mark.row("B52")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json: is not JSON"),
        ("", "config.json: is not JSON"),
        ("[" * 100_000, "config.json: is not JSON"),
        ("[]", "names no model_type"),
        ('{"model_type": 3}', "names no model_type"),
        ('{"model_type": "bert-of-mine"}', "'bert-of-mine' is not a causal language model"),
        ('{"model_type": "t5"}', "'t5' is not a causal language model"),
        ('{"model_type": "\\u001b[2J"}', "'\\x1b[2J' is not a causal"),
    ],
)
def test_b52_a_config_of_something_else_is_named(own_model, content, message):
    folder = own_model()
    (folder / "config.json").write_text(content)
    text, _ = refusal(folder)
    assert message in text
    assert "\x1b" not in text


@pytest.mark.row("B52")
def test_b52_a_config_that_is_not_utf8_is_named(own_model):
    folder = own_model()
    (folder / "config.json").write_bytes(b'{"model_type": "\xff"}')
    assert "config.json: is not JSON" in refusal(folder)[0]


@pytest.mark.row("B53")
def test_b53_pickle_weights_are_never_opened(own_model):
    folder = own_model()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    text, hint = refusal(folder)
    assert "has only pickle weights (pytorch_model.bin), which can run code" in text
    assert "safetensors only" in hint


@pytest.mark.row("B53")
def test_b53_a_folder_without_weights_says_so(own_model):
    folder = own_model()
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder)[0]


def safetensors(**tensors):
    """Return a safetensors file of one byte of data with a header of one's own."""
    header = json.dumps({name: dict(spec) for name, spec in tensors.items()}).encode()
    return len(header).to_bytes(8, "little") + header + b"\x01"


@pytest.mark.row("B54", "B65")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"dtype": "U9", "shape": [1], "data_offsets": [0, 1]}, "a has the unknown type U9"),
        ({"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}, "a does not lie where its header"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 1]}, "a does not lie where its"),
        ({"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}, "a does not lie where its"),
        ({"dtype": "U8", "shape": [], "data_offsets": [1, 1]}, "a does not lie where its header"),
        ({"dtype": "U8", "shape": [1], "data_offsets": [0]}, "has a damaged safetensors header"),
        ({"dtype": "U8", "shape": "x", "data_offsets": [0, 1]}, "has a damaged safetensors"),
    ],
    ids=str,
)
def test_b54_a_header_that_lies_about_its_tensors_is_refused(own_model, spec, message):
    folder = own_model()
    (folder / "model.safetensors").write_bytes(safetensors(a=spec))
    assert message in refusal(folder)[0]


@pytest.mark.row("B54")
def test_b54_tensors_that_overlap_or_leave_a_hole_are_refused(own_model):
    folder = own_model()
    whole = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    (folder / "model.safetensors").write_bytes(safetensors(a=whole, b=whole))
    assert "does not lie where its header says" in refusal(folder)[0]


@pytest.mark.row("B54")
@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\n <!DOCTYPE html><html><body>Log in</body></html>", "it is a web page"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00", "a PyTorch pickle under another name"),
        (b"PK\x03\x04archive/data.pkl", "a PyTorch pickle under another name"),
        (b"", "it is empty"),
        (b"abc", "cut off or of another format"),
    ],
)
def test_b54_a_file_of_another_kind_is_recognized(own_model, content, cause):
    folder = own_model()
    (folder / "model.safetensors").write_bytes(content)
    text, hint = refusal(folder)
    assert f"{folder}/model.safetensors: is not a safetensors file: " in text
    assert cause in text
    assert hint == "download this file again"


@pytest.mark.row("B54")
@pytest.mark.parametrize("missing_bytes", [1, 1000])
def test_b54_a_file_that_was_cut_off_names_both_lengths(own_model, missing_bytes):
    path = own_model() / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-missing_bytes])
    text, hint = refusal(path.parent)
    assert f"is {len(whole) - missing_bytes:,} bytes long" in text
    assert f"announces {len(whole):,}" in text
    assert hint == "the file was cut off: download it again"


@pytest.mark.row("B54")
@pytest.mark.parametrize(
    "header",
    [b"{}}", b'{"a": 1}', b'{"a": {"data_offsets": "x"}}', b"[1, 2]  ", b"[" * 50_000],
)
def test_b54_a_damaged_header_is_named(own_model, header):
    path = own_model() / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "has a damaged safetensors header" in refusal(path.parent)[0]


@pytest.mark.row("B54")
@pytest.mark.parametrize(
    "spec",
    [
        {"data_offsets": [0, 4]},
        {"dtype": "F32", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 3, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": ["one"], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, "four"]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
    ],
)
def test_b54_a_header_with_odd_entries_is_named(own_model, spec):
    path = own_model() / "model.safetensors"
    header = json.dumps({"weight": spec}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert "has a damaged safetensors header" in refusal(path.parent)[0]


@pytest.mark.row("B54")
def test_b54_a_missing_shard_is_named(own_model):
    folder = own_model()
    shard(folder)
    (folder / "b.safetensors").unlink()
    text, hint = refusal(folder)
    assert "names the shard b.safetensors, which is missing" in text
    assert "download the model again" in hint


@pytest.mark.row("B54")
@pytest.mark.parametrize("name", ["x" * 300, "\0", "\ud800"], ids=["long", "nul", "surrogate"])
def test_b54_an_index_that_names_what_no_file_is_called_is_refused(own_model, name):
    folder = own_model()
    index = shard(folder)
    document = json.loads(index.read_text())
    document["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(document))
    text, hint = refusal(folder)
    assert "which is missing" in text
    assert "download the model again" in hint


@pytest.mark.row("B54")
@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/a.safetensors", "./a"]
)
def test_b54_an_index_may_name_plain_files_only(own_model, name):
    folder = own_model()
    index = shard(folder)
    document = json.loads(index.read_text())
    document["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(document))
    assert f"names {name!r}, which is not a plain file name" in refusal(folder)[0]


@pytest.mark.row("B54")
@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 7, "b": "x"}}',
        '{"weight_map": {}}',
    ],
)
def test_b54_a_damaged_index_is_named(own_model, content):
    folder = own_model()
    shard(folder).write_text(content)
    assert "model.safetensors.index.json" in refusal(folder)[0]


@pytest.mark.row("B54")
def test_b54_weights_of_another_model_are_refused(own_model, tiny_model, tmp_path, run_lorafit,
                                                  train_arguments):  # fmt: skip
    folder = own_model()
    shutil.copy(tiny_model("llama") / "model.safetensors", folder)
    outcome = run_lorafit(*train_arguments(tmp_path / "run", model=folder))
    assert outcome.code == ExitCode.BAD_INPUT
    assert "tensors of this architecture are missing in the weights, first " in outcome.err
    assert "they would be random numbers" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.row("B54")
def test_b54_weights_of_another_shape_are_refused(own_model, tmp_path, run_lorafit,
                                                  train_arguments):  # fmt: skip
    folder = own_model()
    change_config(folder, intermediate_size=96)
    outcome = run_lorafit(*train_arguments(tmp_path / "run", model=folder))
    assert outcome.code == ExitCode.BAD_INPUT
    assert "fc1" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.row("B55")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "mine.Model"}}, "auto_map"),
        ({"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"attn_implementation": "someone/kernel"}, "attn_implementation=someone/kernel"),
        ({"_attn_implementation": "someone/kernel"}, "_attn_implementation=someone/kernel"),
        ({"attn_implementation": {"text": "a/b"}}, "attn_implementation=a/b"),
        ({"text_config": {"auto_map": {"AutoConfig": "mine.C"}}}, "auto_map"),
        ({"a": {"b": {"_attn_implementation": "a/b"}}}, "_attn_implementation=a/b"),
        (
            {"attn_implementation": "sdpa", "_attn_implementation": "a/b"},
            "_attn_implementation=a/b",
        ),
    ],
)
def test_b55_a_model_that_asks_to_run_code_is_refused(own_model, changes, named):
    folder = own_model()
    change_config(folder, **changes)
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    text, hint = refusal(folder)
    assert f"this model asks to run code of its own ({named})" in text
    assert "lorafit runs no code from a model" in hint
    assert not (folder / "ran").exists()


@pytest.mark.row("B56")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -32),
        ("hidden_size", 10**9),
        ("hidden_size", "32"),
        ("hidden_size", True),
        ("num_hidden_layers", 10**6),
        ("num_attention_heads", 2.5),
        ("vocab_size", 10**8),
    ],
)
def test_b56_sizes_are_bounded_before_anything_is_built(own_model, key, value):
    folder = own_model()
    change_config(folder, **{key: value})
    text, _ = refusal(folder)
    assert f"config.json: {key} is {value!r}; it must be a whole number of 1 to" in text


@pytest.mark.row("B56")
def test_b56_key_value_heads_divide_the_heads(own_model):
    folder = own_model()
    change_config(folder, num_key_value_heads=3)
    assert "num_key_value_heads is 3, which does not divide the 4" in refusal(folder)[0]


@pytest.mark.row("B56")
@pytest.mark.parametrize("key", ["attention_dropout", "resid_pdrop", "embd_pdrop"])
@pytest.mark.parametrize("value", [-1, 1, 1.5, "0.1", None, True])
def test_b56_shares_are_bounded_too(own_model, key, value):
    folder = own_model()
    change_config(folder, **{key: value})
    text, _ = refusal(folder)
    assert f"config.json: {key} is {value!r}; it must be a number from 0 to below 1" in text


@pytest.mark.row("B56")
@pytest.mark.parametrize(
    "changes",
    [{"text_config": {}}, {"text_config": 7}, {"hidden_act": "nothing"}, {"pad_token_id": 10**9},
     {"hidden_size": 1}, {"rope_parameters": 3}, {"layer_norm_eps": "x"}],
    ids=str,
)  # fmt: skip
def test_b56_a_configuration_that_builds_no_model_is_no_bug(
    own_model, tmp_path, run_lorafit, train_arguments, changes
):
    folder = own_model()
    change_config(folder, **changes)
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--dry-run", model=folder))
    assert outcome.code == ExitCode.BAD_INPUT, outcome.err
    assert "config.json: " in outcome.err


@pytest.mark.row("B56")
def test_b56_a_tokenizer_larger_than_the_embedding_is_refused(own_model):
    from lorafit.model.tokenizer import tokenizer_of

    folder = own_model()
    change_config(folder, vocab_size=100)
    with pytest.raises(ModelError, match="tokens, but the model embeds 100"):
        tokenizer_of(locate_model(str(folder)))


@pytest.mark.row("B56")
def test_b56_an_embedding_larger_than_the_tokenizer_is_fine(tiny_model):
    from lorafit.model.tokenizer import tokenizer_of

    source = locate_model(str(tiny_model()))
    assert len(tokenizer_of(source)) < source.config["vocab_size"]


@pytest.fixture
def text_only_gemma(tiny_model, tmp_path):
    """Gemma 3 without images: its tokenizer has their placeholder, and the model embeds it not."""
    from transformers import AutoTokenizer

    size = len(AutoTokenizer.from_pretrained(tiny_model("gemma3")))
    folder = Path(shutil.copytree(tiny_model("gemma3", vocab_size=size), tmp_path / "gemma"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.row("B56")
def test_b56_a_special_token_beyond_the_embedding_stops_nobody_who_does_not_use_it(
    text_only_gemma, tmp_path, run_lorafit, train_arguments
):
    arguments = train_arguments(tmp_path / "run", model=text_only_gemma, max_steps=2)
    outcome = run_lorafit(*arguments)
    assert outcome.code == ExitCode.OK, outcome.err


@pytest.mark.row("B56")
def test_b56_a_pad_token_beyond_the_embedding_fills_no_row(text_only_gemma):
    from lorafit.model.tokenizer import choose_pad_token, tokenizer_of

    change_tokenizer(text_only_gemma, pad_token="<image_soft_token>")
    tokenizer = tokenizer_of(locate_model(str(text_only_gemma)))
    assert tokenizer.pad_token_id >= len(tokenizer) - 1
    assert choose_pad_token(tokenizer).token_id == tokenizer.eos_token_id


@pytest.mark.row("B56")
def test_b56_an_end_of_text_beyond_the_embedding_is_refused(text_only_gemma):
    from lorafit.model.tokenizer import tokenizer_of

    change_tokenizer(text_only_gemma, eos_token="<image_soft_token>")
    with pytest.raises(ModelError, match="but the model embeds"):
        tokenizer_of(locate_model(str(text_only_gemma)))


@pytest.mark.row("B56")
def test_b56_text_with_a_token_beyond_the_embedding_is_refused_with_its_line(
    text_only_gemma, tmp_path, run_lorafit, train_arguments
):
    rows = [
        {"prompt": "the colour is", "completion": text} for text in ("red", "<image_soft_token>")
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    arguments = train_arguments(tmp_path / "run", model=text_only_gemma, data=data)
    outcome = run_lorafit(*arguments)
    assert outcome.code == ExitCode.BAD_INPUT
    assert "rows.jsonl:2" in outcome.err
    assert "holds <image_soft_token>" in outcome.err
    prompt = ("--model", text_only_gemma, "--prompt", "<image_soft_token> is", "--device", "cpu")
    outcome = run_lorafit("generate", *prompt)
    assert outcome.code == ExitCode.BAD_INPUT
    assert "the prompt holds <image_soft_token>" in outcome.err


@pytest.mark.row("B57")
def test_b57_a_missing_tokenizer_says_what_was_looked_for(own_model, tmp_path, run_lorafit,
                                                          train_arguments):  # fmt: skip
    folder = own_model()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    outcome = run_lorafit(*train_arguments(tmp_path / "run", model=folder))
    assert outcome.code == ExitCode.BAD_INPUT
    assert "has no tokenizer (looked for tokenizer.json" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.row("B57")
@pytest.mark.parametrize("content", ["{}", "not json", '{"model": {"type": "BPE"}}'])
def test_b57_a_damaged_tokenizer_is_named(own_model, content):
    from lorafit.model.tokenizer import tokenizer_of

    folder = own_model()
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="its tokenizer cannot be read"):
        tokenizer_of(locate_model(str(folder)))


@pytest.mark.row("B57")
def test_b57_padding_is_end_of_text_only_where_there_is_nothing_else(tiny_model):
    from lorafit.model.tokenizer import choose_pad_token, tokenizer_of

    tokenizer = tokenizer_of(locate_model(str(tiny_model())))
    pad = choose_pad_token(tokenizer)
    assert pad.token_id == tokenizer.eos_token_id
    assert "masked by position, so that a true end-of-text is still learnt" in pad.reason
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    own = choose_pad_token(tokenizer)
    assert own == (tokenizer.pad_token_id, "the tokenizer's own pad token")


@pytest.mark.row("B57")
def test_b57_a_tokenizer_that_asks_to_run_code_is_not_obeyed(own_model):
    from lorafit.model.tokenizer import tokenizer_of

    folder = own_model()
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "tokenizer_class": "Mine"}
    config["auto_map"] = {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}
    path.write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Mine: pass")
    with contextlib.suppress(ModelError):
        tokenizer_of(locate_model(str(folder)))
    assert not (folder / "ran").exists()


@pytest.mark.row("B58")
def test_b58_a_hub_id_while_offline_names_the_next_command_within_seconds(
    tmp_path, run_lorafit, train_arguments, monkeypatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    outcome = run_lorafit(*train_arguments(tmp_path / "run", model="microsoft/phi-2-not-here"))
    assert outcome.code == ExitCode.BAD_INPUT
    assert "the model microsoft/phi-2-not-here is not on this machine" in outcome.err
    assert "HF_HUB_OFFLINE is set" in outcome.err
    assert "hf download microsoft/phi-2-not-here --local-dir FOLDER" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.row("B58")
def test_b58_a_hub_that_refuses_the_connection_is_reported_within_seconds(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to ask again"))
    text, hint = refusal("someone/not-here")
    assert "the hub cannot be reached (127.0.0.1: " in text
    assert "hf download someone/not-here" in hint


@pytest.mark.row("B59")
@pytest.mark.parametrize(
    ("quantized", "method"),
    [({"quant_method": "gptq"}, "gptq"), ({"bits": 4}, "unknown"), ("awq", "?"), ([1], "?")],
)
def test_b59_a_quantized_base_is_explained(own_model, quantized, method):
    folder = own_model()
    change_config(folder, quantization_config=quantized)
    text, hint = refusal(folder)
    assert f"these weights are already quantized ({method})" in text
    assert "--quantization nf4" in hint


@pytest.mark.row("B59")
def test_b59_an_adapter_is_not_a_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    text, hint = refusal(tmp_path)
    assert "holds a LoRA adapter, not a base model" in text
    assert "--adapter" in hint


@pytest.mark.row("B33")
def test_b33_rows_longer_than_the_model_reads_are_refused(tmp_path, run_lorafit, train_arguments):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", max_length=257))
    assert outcome.code == ExitCode.BAD_INPUT
    assert "max_length (flag --max-length): 257 is more than the 256 positions of" in outcome.err
    assert "hint: --max-length 256 at most" in outcome.err
    assert not (tmp_path / "run").exists()
