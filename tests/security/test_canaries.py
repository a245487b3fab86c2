"""One canary a loader: code hidden in every kind of file that would make a file if it ran."""

import importlib
import json
import pickle
import sys

import pytest
from tiny import colour_rows, write_jsonl


@pytest.fixture
def canary(tmp_path):
    """The file that hostile code would make; checked after the test, whatever was raised."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


class Payload:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


def test_the_payload_would_make_the_file(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "made"))).close()
    assert (tmp_path / "made").exists()


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def train_once(run_lorafit, train_arguments, tmp_path):
    def train(**changes):
        return run_lorafit(
            *train_arguments(tmp_path / "run", max_steps=1, warmup_steps=0, **changes)
        )

    return train


# -- Pickles


@pytest.mark.row("B50")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_under_the_name_of_data(run_lorafit, canary, tmp_path, name, protocol):
    (tmp_path / name).write_bytes(pickle.dumps(Payload(canary), protocol))
    assert run_lorafit("data", "inspect", tmp_path / name).code == 3


@pytest.mark.row("B53")
@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl", "model.pkl",
     "tokenizer.model", "generation_config.pkl"],
)  # fmt: skip
def test_a_pickle_beside_the_weights_of_a_model(train_once, own_model, canary, name):
    model = own_model()
    (model / name).write_bytes(pickle.dumps(Payload(canary)))
    assert train_once(model=model).code == 0


@pytest.mark.row("B53", "B54")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json",
                                  "tokenizer_config.json", "generation_config.json"])  # fmt: skip
def test_a_pickle_in_place_of_a_file_of_a_model(train_once, own_model, canary, name):
    model = own_model()
    (model / name).write_bytes(pickle.dumps(Payload(canary)))
    # A generation configuration that cannot be read is not needed: lorafit sets every value.
    assert train_once(model=model).code == (0 if name == "generation_config.json" else 3)


# -- Settings


@pytest.mark.row("B27")
@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:builtins.open", "!!python/object/new:builtins.open",
            "!!python/name:builtins.open", "!!python/module:os"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["settings", "preset"])
def test_a_yaml_tag_that_names_code(run_lorafit, canary, tmp_path, tag, kind):
    path = tmp_path / "mine.yaml"
    value = f'{tag} ["{canary}", "w"]'
    head = "schema_version: 1\nname: mine\nsettings:\n  " if kind == "preset" else ""
    path.write_text(f"{head}model: {value}\n")
    outcome = run_lorafit("config", "validate", path)
    assert outcome.code == 3
    assert "tags (!) are not allowed" in outcome.err


def test_a_template_that_looks_inside_of_objects(run_lorafit, canary, tiny_data):
    outcome = run_lorafit(
        *("data", "inspect", tiny_data, "--completion-template", "{completion}"),
        *("--prompt-template", "{prompt.__class__.__init__.__globals__}"),
    )
    assert outcome.code == 3
    assert "is not the plain name of a field" in outcome.err


# -- Models


def hostile_module(folder, canary):
    (folder / "mine.py").write_text(
        f"open({str(canary)!r}, 'w')\nclass Mine: pass\n", encoding="utf-8"
    )


@pytest.mark.row("B55")
@pytest.mark.parametrize("key", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
def test_a_configuration_that_maps_to_code(train_once, own_model, canary, key):
    model = own_model()
    hostile_module(model, canary)
    change_json(model / "config.json", auto_map={key: "mine.Mine"})
    assert train_once(model=model).code == 3


@pytest.mark.row("B55")
def test_a_nested_configuration_that_maps_to_code(train_once, own_model, canary):
    model = own_model()
    hostile_module(model, canary)
    change_json(model / "config.json", text_config={"auto_map": {"AutoConfig": "mine.Mine"}})
    assert train_once(model=model).code == 3


@pytest.mark.row("B57")
def test_a_tokenizer_that_maps_to_code(train_once, own_model, canary):
    model = own_model()
    hostile_module(model, canary)
    for name in ("tokenizer_config.json", "generation_config.json"):
        change_json(
            model / name, auto_map={"AutoTokenizer": ["mine.Mine", "mine.Mine"]},
            tokenizer_class="Mine", custom_generate="mine",
        )  # fmt: skip
    assert train_once(model=model).code in (0, 3)


# -- Chat templates

ESCAPES = [
    "{{ cycler.__init__.__globals__.os.open(PATH, 65) }}",
    "{{ lipsum.__globals__['os'].open(PATH, 65) }}",
    "{{ joiner.__init__.__globals__['__builtins__'].open(PATH, 'w') }}",
    "{{ raise_exception.__globals__['__builtins__']['open'](PATH, 'w') }}",
    "{{ strftime_now.__globals__['__builtins__']['open'](PATH, 'w') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ (''|attr('__class__')|attr('__mro__'))[1]|attr('__subclasses__') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{0.__class__}'.format_map({'0': messages}) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment.from_string('x') }}",
    "{{ messages.__class__.__base__ }}",
    "{% set x = messages.append(messages) %}",
    "{% include PATH %}",
    "{% import 'os' as os %}{{ os.open(PATH, 65) }}",
    "{{ range(10 ** 12) | list }}",
]


@pytest.mark.row("B57")
@pytest.mark.parametrize("place", ["tokenizer", "jinja file", "flag"])
@pytest.mark.parametrize("escape", ESCAPES)
def test_a_chat_template_that_tries_to_leave_its_sandbox(
    run_lorafit, own_model, canary, tmp_path, escape, place
):
    template = escape.replace("PATH", repr(str(canary)))
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    model = own_model()
    more = ()
    if place == "tokenizer":
        change_json(model / "tokenizer_config.json", chat_template=template)
    elif place == "jinja file":
        (model / "chat_template.jinja").write_text(template)
    else:
        (tmp_path / "mine.jinja").write_text(template)
        more = ("--chat-template", tmp_path / "mine.jinja")
    outcome = run_lorafit("data", "inspect", data, "--model", model, *more)
    assert outcome.code == 3
    assert "the chat template" in outcome.err
    assert "os.open" not in outcome.out


# -- Adapters


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def adapter(kept, run_lorafit, train_arguments, tmp_path_factory):
    """A trained adapter, the same for the module: a test puts its configuration back."""
    if "adapter" not in kept:
        run_dir = tmp_path_factory.mktemp("kept") / "run"
        assert run_lorafit(*train_arguments(run_dir, max_steps=2)).code == 0
        kept["adapter"] = run_dir / "adapter"
    config = kept["adapter"] / "adapter_config.json"
    before = config.read_text()
    yield kept["adapter"]
    config.write_text(before)


@pytest.mark.row("B66")
@pytest.mark.parametrize(
    "changes",
    [
        {"auto_mapping": {"base_model_class": "Mine", "parent_library": "mine"}},
        {"megatron_config": {"a": 1}, "megatron_core": "mine"},
        {"loftq_config": {"loftq_bits": 4}, "init_lora_weights": "loftq"},
        {"corda_config": {"cache_file": "mine.pt"}, "init_lora_weights": "corda"},
        {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"},
        {"layer_replication": [[0, 10**6]]},
        {"target_parameters": ["(.*a)+$"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_adapter_that_names_a_module_or_another_recipe(
    run_lorafit, tiny_model, adapter, canary, monkeypatch, changes
):
    hostile_module(adapter, canary)
    # Even where the module could be imported, as in the working folder of `python -m`.
    monkeypatch.syspath_prepend(str(adapter))
    importlib.invalidate_caches()
    change_json(adapter / "adapter_config.json", **changes)
    outcome = run_lorafit(
        *("generate", "--model", tiny_model(), "--adapter", adapter, "--device", "cpu"),
        *("--prompt", "x", "--max-new-tokens", "1"),
    )
    assert outcome.code == 3, outcome.err
    assert "mine" not in sys.modules
    assert "adapter_config.json" in outcome.err


@pytest.mark.row("B64")
@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "training_args.bin",
                                  "optimizer.pt", "rng_state.pth"])  # fmt: skip
def test_a_pickle_beside_an_adapter(run_lorafit, tiny_model, adapter, canary, name):
    (adapter / name).write_bytes(pickle.dumps(Payload(canary)))
    outcome = run_lorafit(
        *("generate", "--model", tiny_model(), "--adapter", adapter, "--device", "cpu"),
        *("--prompt", "x", "--max-new-tokens", "1"),
    )
    (adapter / name).unlink()
    assert outcome.code == 0, outcome.err


def test_a_template_file_that_is_a_pickle(run_lorafit, tiny_model, canary, tmp_path):
    (tmp_path / "mine.jinja").write_bytes(pickle.dumps(Payload(canary), 5))
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(2))
    outcome = run_lorafit(
        *("data", "inspect", data, "--model", tiny_model()),
        *("--chat-template", tmp_path / "mine.jinja"),
    )
    assert outcome.code in (0, 3)  # rows without messages need no template
