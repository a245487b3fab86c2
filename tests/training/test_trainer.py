"""The Trainer's loop and a plain loop over `model.step.training_step` are the same training."""

import pytest
import torch
from tiny import colour_rows, count_supervised, write_jsonl
from transformers import TrainerCallback

from lorafit.config.schema import Settings
from lorafit.data.collate import Collator
from lorafit.data.load import load_source
from lorafit.data.micro_batches import MicroBatchLimits
from lorafit.model.build import add_adapter, load_base
from lorafit.model.source import locate_model
from lorafit.model.step import make_optimizer, training_step
from lorafit.model.tokenizer import tokenizer_of
from lorafit.report.tally import Tally
from lorafit.training.arguments import training_arguments
from lorafit.training.guard.oom import MemoryRecovery
from lorafit.training.guard.signals import StopRequest
from lorafit.training.trainer import LoraTrainer

pytestmark = pytest.mark.usefixtures("quiet_libraries")
ACCUMULATION = 3


def recovery():
    return MemoryRecovery(limits=MicroBatchLimits(2), eval_batch_size=1, device=torch.device("cpu"))


class Recorder(Tally):
    """Keeps every step's record."""

    def __init__(self):
        super().__init__()
        self.records = []

    def on_step(self, record):
        super().on_step(record)
        self.records.append(record)


class Generator(TrainerCallback):
    """Remembers torch's random state at the first step."""

    state = None

    def on_step_begin(self, args, state, control, **_):
        self.state = torch.get_rng_state() if self.state is None else self.state


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "options",
    [{}, {"max_grad_norm": 0.05}, {"label_smoothing_factor": 0.1}, {"gradient_checkpointing": True},
     {"weight_decay": 0.1, "optim": "adafactor"}],
    ids=["plain", "clipped", "smoothed", "checkpointed", "adafactor"],
)  # fmt: skip
def test_the_trainer_takes_the_very_steps_of_training_step(tiny_model, tmp_path, dropout, options):
    settings = Settings(
        **{"gradient_checkpointing": False, **options},
        lora_dropout=dropout, learning_rate=1e-2, lr_scheduler_type="constant", warmup_steps=0,
        max_steps=3, max_length=64,
    )  # fmt: skip
    source = locate_model(str(tiny_model(resid_pdrop=dropout)))
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(18))
    rows = load_source(str(data), settings, tokenizer_of(source)).dataset

    def build():
        base = load_base(settings, source, torch.float32, torch.device("cpu"))
        return add_adapter(base, settings)[0]

    batches, recorder, generator = [], Recorder(), Generator()
    collate = Collator(0, pad_to_multiple_of=8)

    def recording(chosen):
        batches.append(collate(chosen))
        return dict(batches[-1])

    trained = build()
    trainer = LoraTrainer(
        settings=settings, run_id="x", observers=[recorder], stop=StopRequest(),
        model=trained, train_dataset=rows, recovery=recovery(), collate=recording,
        args=training_arguments(
            settings, run_dir=tmp_path, rows_per_step=2 * ACCUMULATION,
            dtype=torch.float32, device_kind="cpu", compile_model=False, validate=False,
            warmup_steps=0,
        ),
    )  # fmt: skip
    trainer.add_callback(generator)
    trainer.train()

    plain = build()
    optimizer = make_optimizer(plain, settings)
    torch.set_rng_state(generator.state)
    losses, norms = [], []
    for start in range(0, 9, ACCUMULATION):
        chosen = batches[start : start + ACCUMULATION]
        num_targets = sum(count_supervised(batch["labels"]) for batch in chosen)
        outcome = training_step(plain, optimizer, chosen, num_targets, settings)
        losses.append(float(outcome.loss))
        norms.append(float(outcome.grad_norm))

    assert [record.loss for record in recorder.records] == losses
    assert [record.grad_norm for record in recorder.records] == norms
    expected = dict(plain.named_parameters())
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert any(p.count_nonzero() for n, p in trained.named_parameters() if "lora_B" in n)


def test_tokens_are_counted_without_padding_over_the_whole_step(tiny_model, tmp_path):
    settings = Settings(max_steps=1, max_length=64, gradient_checkpointing=False)
    source = locate_model(str(tiny_model()))
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(6))
    rows = load_source(str(data), settings, tokenizer_of(source)).dataset
    base = load_base(settings, source, torch.float32, torch.device("cpu"))
    recorder = Recorder()
    trainer = LoraTrainer(
        settings=settings, run_id="x", observers=[recorder], stop=StopRequest(),
        model=add_adapter(base, settings)[0], train_dataset=rows, recovery=recovery(),
        collate=Collator(0, 8),
        args=training_arguments(
            settings, run_dir=tmp_path, rows_per_step=6, dtype=torch.float32,
            device_kind="cpu", compile_model=False, validate=False,
            warmup_steps=0,
        ),
    )  # fmt: skip
    trainer.train()
    (record,) = recorder.records
    assert record.tokens == rows.counts.tokens
    assert record.supervised_tokens == rows.counts.supervised_tokens
    assert record.memory_allocated_bytes > 0
