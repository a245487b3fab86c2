"""Runs that go on from a checkpoint of a plain transformers Trainer + PEFT script."""

import json
import math
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafit.config.resolve import resolve_run
from lorafit.errors import CheckpointError
from lorafit.hardware.detect import detect_device
from lorafit.model.adapter import verify_adapter
from lorafit.model.libraries import prepare_libraries
from lorafit.report.events import read_events
from lorafit.training.checkpoints.checkpoint import verify_checkpoint
from lorafit.training.checkpoints.layout import STATE_FILES
from lorafit.training.foreign.hf_checkpoint import load_plain_pickle, read_hf_checkpoint
from lorafit.training.foreign.hf_compare import examine_hf_checkpoint
from lorafit.training.foreign.hf_moments import expected_of
from lorafit.training.planning.plan import plan_run

pytestmark = [pytest.mark.usefixtures("quiet_libraries"), pytest.mark.row("B61")]
STEP, TOTAL = 4, 8
TARGETS = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
RUN = {"max_steps": TOTAL, "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "eval_steps": 100,
       "validation_split": 0, "learning_rate": 1e-2, "lr_scheduler_type": "cosine"}  # fmt: skip


def train_plainly(model_dir, data, output_dir):
    """Train as transformers' documentation does; return the loss of every step."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
        set_seed,
    )  # fmt: skip

    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.pad_token = tokenizer.eos_token
    rows = []
    for line in data.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
    config = LoraConfig(
        r=8, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    trainer = Trainer(
        model=get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), config),
        args=TrainingArguments(
            output_dir=str(output_dir), per_device_train_batch_size=2, max_steps=TOTAL,
            gradient_accumulation_steps=3, learning_rate=1e-2, warmup_steps=1, logging_steps=1,
            lr_scheduler_type="cosine", save_steps=STEP, use_cpu=True, report_to="none",
            disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def trained(tiny_model, tiny_data, tmp_path_factory):
    """The checkpoint of step 4 of a plain script that went on to step 8, and all its losses."""
    folder = tmp_path_factory.mktemp("plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = train_plainly(tiny_model(resid_pdrop=0.0), tiny_data, folder)
    return folder / f"checkpoint-{STEP}", losses


@pytest.fixture
def foreign(trained, tmp_path):
    """A private copy of that checkpoint, to damage."""
    return shutil.copytree(trained[0], tmp_path / f"checkpoint-{STEP}")


@pytest.fixture
def go_on(run_lorafit, train_arguments, tiny_model, tmp_path):
    def go_on(foreign, *more, **changes):
        arguments = {"model": tiny_model(resid_pdrop=0.0), **RUN, **changes}
        return run_lorafit(
            *train_arguments(tmp_path / "run", "--import-hf-checkpoint", foreign, *more,
                             **arguments)
        )  # fmt: skip

    return go_on


@pytest.fixture(scope="module")
def plan(tiny_model, tiny_data, tmp_path_factory):
    """The plan of a run that may go on from the checkpoint."""
    flags = {"model": tiny_model(resid_pdrop=0.0), "data": tiny_data, "max_length": 64, **RUN,
             "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "warmup_steps": 1,
             "gradient_checkpointing": "false", "device": "cpu",
             "output_dir": tmp_path_factory.mktemp("planned") / "run"}  # fmt: skip
    device = detect_device("cpu")
    with warnings.catch_warnings():
        prepare_libraries()
        resolved = resolve_run(
            preset=None, config_file=None, overrides=(), environ={}, device=device,
            flags={name: str(value) for name, value in flags.items()},
        )  # fmt: skip
        return plan_run(resolved, device)


def test_the_run_goes_on_with_the_losses_that_the_script_itself_went_on_with(
    trained, go_on, tmp_path
):
    foreign, losses = trained
    outcome = go_on(foreign)
    assert outcome.code == 0, outcome.err
    events = read_events(tmp_path / "run")
    assert [event["step"] for event in events] == [5, 6, 7, 8]
    for event in events:
        assert event["loss"] == pytest.approx(losses[event["step"] - 1], rel=1e-4)
    assert "learning rate of the next step" in outcome.err
    assert "cannot be verified" in outcome.err


def test_adapter_and_moments_become_the_first_checkpoint_unchanged(trained, go_on, tmp_path):
    foreign, _ = trained
    assert go_on(foreign, save_total_limit=5).code == 0
    own = tmp_path / "run" / f"checkpoint-{STEP}"
    assert verify_checkpoint(own, STATE_FILES).step == STEP
    assert verify_adapter(own)["r"] == verify_adapter(foreign)["r"]
    then, now = (load_file(f / "adapter_model.safetensors") for f in (foreign, own))
    assert then.keys() == now.keys()
    assert all(torch.equal(then[name], now[name]) for name in then)
    kept = torch.load(foreign / "optimizer.pt", weights_only=True)["state"]
    moments = load_file(own / "optimizer.safetensors")
    assert len(moments) == 3 * len(kept) == 3 * 24
    for index, entry in kept.items():
        for name, tensor in entry.items():
            assert torch.equal(moments[f"{index}.{name}"], tensor), (index, name)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    facts = {fact["name"]: fact for fact in record["imported"]["facts"]}
    assert record["imported"]["step"] == STEP
    assert facts["base model"]["standing"] == "same"
    assert facts["moments"]["standing"] == "taken over"
    assert facts["learning rate of the next step"]["standing"] == "same"
    assert facts["files undamaged"]["standing"] == "unknown"
    assert facts["random numbers"]["standing"] == "left out"


def test_other_settings_are_stated_and_those_of_the_command_hold(trained, go_on, tmp_path):
    outcome = go_on(trained[0], learning_rate=5e-3, weight_decay=0.1, max_steps=6)
    assert outcome.code == 0, outcome.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    differing = {f["name"] for f in record["imported"]["facts"] if f["standing"] == "differs"}
    assert differing == {"peak learning rate", "learning rate of the next step", "weight_decay",
                         "steps in all"}  # fmt: skip
    assert "made of" in " ".join(record["notes"])


def test_the_same_command_goes_on_with_the_run_itself(trained, go_on, tmp_path):
    assert go_on(trained[0]).code == 0
    again = go_on(trained[0])
    assert again.code == 0, again.err
    assert "already complete" in again.err
    other = shutil.copytree(trained[0], tmp_path / "other")
    refused = go_on(other)
    assert refused.code == 5
    assert "holds a run that did not go on from" in refused.err


def test_a_run_whose_imported_checkpoint_is_gone_does_not_begin_at_step_0(
    trained, go_on, run_lorafit, train_arguments, tiny_model, tmp_path
):
    assert go_on(trained[0]).code == 0
    run_dir = tmp_path / "run"
    for folder in run_dir.glob("checkpoint-*"):
        shutil.rmtree(folder)
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    plain = run_lorafit(*train_arguments(run_dir, model=tiny_model(resid_pdrop=0.0), **RUN))
    assert plain.code == 5
    assert "give --import-hf-checkpoint FOLDER again" in plain.err
    again = go_on(trained[0])
    assert again.code == 0, again.err
    assert [event["step"] for event in read_events(run_dir)] == [5, 6, 7, 8]


def test_a_dry_run_shows_the_table_and_writes_nothing(trained, go_on, tmp_path):
    outcome = go_on(trained[0], "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "Checkpoint of transformers' Trainer" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora_r": 4}, ["lora_r then: 8 now: 4", "hint: --lora-r 8"]),
        ({"lora_alpha": 8}, ["lora_alpha then: 32", "hint: --lora-alpha 32"]),
        ({"target_modules": "q_proj,v_proj"}, ["target_modules then: ['dense', 'fc1'",
         "hint: --target-modules dense,fc1,fc2,k_proj,q_proj,v_proj"]),
        ({"use_dora": True}, ["use_dora then: False now: True", "hint: --no-use-dora"]),
        ({"optim": "sgd"}, ["the state of torch's AdamW, and this run has --optim sgd"]),
        ({"max_steps": 4}, ["4 steps are done, and this run is to have 4"]),
    ],
    ids=str,
)  # fmt: skip
def test_another_adapter_or_optimizer_is_refused_with_what_to_type(
    trained, go_on, tmp_path, changes, expected
):
    outcome = go_on(trained[0], **changes)
    assert outcome.code == 5, outcome.err
    for text in expected:
        assert text in " ".join(outcome.err.split())
    assert not (tmp_path / "run" / "run.json").exists()


def test_another_base_model_is_refused(trained, go_on, tiny_model):
    outcome = go_on(trained[0], model=tiny_model(resid_pdrop=0.0, hidden_size=16))
    assert outcome.code == 5
    assert "was trained on the base model" in outcome.err
    assert "--allow-mismatch base_weights" in outcome.err
    allowed = go_on(trained[0], "--allow-mismatch", "base_weights",
                    model=tiny_model(resid_pdrop=0.0, hidden_size=16))  # fmt: skip
    assert allowed.code == 5
    assert "and the adapter on this base model has" in allowed.err


def test_a_base_model_that_is_gone_is_known_by_its_name_only(foreign, plan):
    path = foreign / "adapter_config.json"
    config = json.loads(path.read_text())

    def base_of(name, *allowed):
        path.write_text(json.dumps({**config, "base_model_name_or_path": name}))
        found = examine_hf_checkpoint(plan, foreign, allowed)
        return next((f.name, f.standing) for f in found.facts if f.name.startswith("base model"))

    with pytest.raises(CheckpointError, match="was trained on the base model someone/else"):
        base_of("someone/else")
    assert base_of("someone/else", "base_weights") == ("base model", "differs")
    assert base_of(f"someone/{plan.source.path.name}") == ("base model (by its name only)", "same")
    assert base_of(None) == ("base model", "unknown")
    assert base_of(str(plan.source.path)) == ("base model", "same")


def test_an_adapter_whose_base_was_changed_with_it_is_refused(foreign, plan):
    path = foreign / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    with pytest.raises(CheckpointError, match="base weights were changed as well"):
        examine_hf_checkpoint(plan, foreign)


# -- Hostile and damaged files --------------------------------------------------------------


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(foreign, go_on, tmp_path, name):
    ran = tmp_path / "ran"
    content = torch.load(foreign / name, weights_only=True)
    torch.save({**content, "extra": Canary(ran)}, foreign / name)
    outcome = go_on(foreign)
    assert outcome.code == 5
    assert "reading that would run code" in outcome.err
    assert "open" in outcome.err
    assert not ran.exists()


def test_what_a_library_declared_safe_is_still_refused(tmp_path, monkeypatch):
    torch.save({"a": Canary(tmp_path / "ran")}, tmp_path / "x.pt")
    with torch.serialization.safe_globals([open]):
        with pytest.raises(CheckpointError, match="would run code"):
            load_plain_pickle(tmp_path / "x.pt")
        assert open in torch.serialization.get_safe_globals()
    assert not (tmp_path / "ran").exists()


def test_pickles_that_are_not_needed_are_never_opened(foreign, plan, tmp_path):
    for name in ("training_args.bin", "rng_state.pth"):
        torch.save(Canary(tmp_path / "ran"), foreign / name)
    examine_hf_checkpoint(plan, foreign)
    assert not (tmp_path / "ran").exists()


def change_optimizer(folder, change):
    content = torch.load(folder / "optimizer.pt", weights_only=True)
    change(content)
    torch.save(content, folder / "optimizer.pt")


def set_moment(value):
    return lambda content: content["state"][3].update(exp_avg=value)


def swap(content):
    state = content["state"]
    state[0], state[1] = state[1], state[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["state"][3].pop("exp_avg"), "has the state step, exp_avg_sq"),
        (lambda c: c["state"].pop(3), "is not the state of AdamW with a step for every"),
        (lambda c: c.pop("param_groups"), "is not the state of AdamW"),
        (lambda c: c["param_groups"][0]["params"].pop(), "moments of 23 parameters"),
        (set_moment(torch.full((8, 32), math.nan)), "moments that are not finite"),
        (set_moment([1.0]), "no plain tensors"),
        (set_moment(torch.ones(3)), "has the shape [3]"),
        (lambda c: c["state"][3]["exp_avg_sq"].neg_(), "negative squares"),
        (lambda c: c["state"][3].update(step=torch.tensor(9.0)), "took 9 steps, and the Trainer 4"),
        (lambda c: c["state"][3].update(step=torch.ones(2)), "took nan steps"),
        (swap, "the order of its parameters is another"),
    ],
)  # fmt: skip
def test_moments_that_do_not_fit_are_refused(foreign, plan, change, message):
    change_optimizer(foreign, change)
    with pytest.raises(CheckpointError) as caught:
        examine_hf_checkpoint(plan, foreign)
    assert message in str(caught.value) + str(caught.value.hint)


def test_moments_with_names_are_taken_over_by_name(foreign, plan):
    expected = examine_hf_checkpoint(plan, foreign).optimizer["state"]

    def name_and_turn_round(content):
        (group,) = [group for group in content["param_groups"] if group["params"]]
        names = [name for name, _ in expected_of(plan).parameters]
        group["param_names"] = names[::-1]
        group["params"] = group["params"][::-1]

    change_optimizer(foreign, name_and_turn_round)
    found = examine_hf_checkpoint(plan, foreign)
    assert "by name" in next(fact.now for fact in found.facts if fact.name == "moments")
    for index, entry in expected.items():
        for name, tensor in entry.items():
            assert torch.equal(found.optimizer["state"][index][name], tensor)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("optimizer.pt", None, "optimizer.pt: is missing"),
        ("trainer_state.json", None, "trainer_state.json: is missing"),
        ("scheduler.pt", b"PK\x03\x04", "is damaged"),
        ("trainer_state.json", b"[]", "is not the state of a Trainer"),
        ("trainer_state.json", b'{"global_step": true}', "no step was taken"),
        ("trainer_state.json", b'{"global_step": 3}', "stands at step 4, and the Trainer at 3"),
        ("adapter_model.safetensors", None, "has no adapter_model.safetensors"),
        ("adapter_config.json", b"{}", "is not a LoRA adapter"),
    ],
)
def test_missing_and_damaged_files_are_named(foreign, name, content, message):
    (foreign / name).unlink()
    if content is not None:
        (foreign / name).write_bytes(content)
    if name == "trainer_state.json" and content and b"3" in content:
        change_optimizer(foreign, lambda c: [e.update(step=3.0) for e in c["state"].values()])
    with pytest.raises(CheckpointError) as caught:
        read_hf_checkpoint(foreign)
    assert message in str(caught.value)


def test_an_adapter_that_is_only_a_pickle_is_refused(foreign):
    (foreign / "adapter_model.safetensors").rename(foreign / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="has only a pickle"):
        read_hf_checkpoint(foreign)


def test_a_tensor_of_another_shape_is_named(foreign, plan):
    path = foreign / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "fc1.lora_B" in name)
    tensors[name] = torch.ones(3, 8)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        examine_hf_checkpoint(plan, foreign)
    expected = "has the shape [3, 8], and the adapter on this base model has [64, 8]"
    assert expected in str(caught.value)


def test_it_does_not_go_together_with_resume(go_on, trained):
    outcome = go_on(trained[0], "--resume", "auto")
    assert outcome.code == 2
    assert "leave one of them out" in outcome.err
