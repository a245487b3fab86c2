"""A checkpoint of transformers' Trainer and PEFT beside a planned run: what fits, what is stated.

Such a checkpoint has no manifest, no hashes and no record of its settings. What decides whether
its tensors mean here what they meant there is compared and refused; all else is put into a table.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lorafit.config.schedule import learning_rate_at
from lorafit.errors import CheckpointError
from lorafit.files import sha256_of
from lorafit.model.step import ADAM_BETAS, ADAM_EPSILON
from lorafit.text import excerpt
from lorafit.training.foreign.hf_checkpoint import HfCheckpoint, read_hf_checkpoint
from lorafit.training.foreign.hf_moments import expected_of, in_order, require_tensors
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.run_folder.base_digest import digest_of_weights

if TYPE_CHECKING:
    from lorafit.config.schema import Settings

Standing = Literal["taken over", "same", "differs", "unknown", "left out"]
BASE = "base_weights"
_ADAMW = ("adamw_torch", "adamw_torch_fused")
# What PEFT draws of the adapter alone; other kinds of initialization change the base as well.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")
_CHANGED_BASE = "so its base weights were changed as well, and are not in the checkpoint"


class Fact(NamedTuple):
    """One line of the table: what the checkpoint says, what this run does, and where that leads."""

    name: str
    then: str
    now: str
    standing: Standing


@dataclass(frozen=True)
class HfImport:
    """A checkpoint that fits this run, and what is known of it."""

    checkpoint: HfCheckpoint
    facts: tuple[Fact, ...]
    optimizer: dict[str, Any]
    """The optimizer's state as `torch.optim.AdamW.state_dict` has it, in this run's order."""

    def as_dict(self) -> dict[str, Any]:
        """Return it for run.json."""
        return {
            "folder": str(self.checkpoint.folder.resolve()),
            "step": self.checkpoint.step,
            "facts": [fact._asdict() for fact in self.facts],
        }


def examine_hf_checkpoint(plan: RunPlan, folder: Path, allowed: Collection[str] = ()) -> HfImport:
    """Read such a checkpoint and compare it with the planned run.

    Args:
        plan: the run that is to go on from it.
        folder: where it lies.
        allowed: `base_weights` lets a base model of another name pass.

    Raises:
        CheckpointError: it cannot be read, or is of another adapter, base model or optimizer, or
            the planned run ends before the step that it has reached.
    """
    found = read_hf_checkpoint(folder)
    _require_supported(plan, found)
    _require_same_adapter(plan.settings, plan.model.targets.names, found)
    base = _compare_base(plan, found, allowed)
    expected = expected_of(plan)
    require_tensors(expected.tensors, found)
    moments = in_order(expected, found)
    facts = (*_state_facts(found, base), *_schedule_facts(plan, found), *_UNKNOWN)
    return HfImport(found, facts, moments)


def _require_supported(plan: RunPlan, found: HfCheckpoint) -> None:
    where = str(found.folder)
    if plan.settings.method != "sft":
        raise CheckpointError(
            f"only supervised runs go on from a foreign checkpoint, and --method is "
            f"{plan.settings.method}",
            where=where,
        )
    if plan.settings.optim not in _ADAMW:
        raise CheckpointError(
            f"holds the state of torch's AdamW, and this run has --optim {plan.settings.optim}",
            where=where,
            hint="--optim adamw_torch takes it over",
        )
    total = plan.schedule.total_steps
    if found.step >= total:
        raise CheckpointError(
            f"{found.step} steps are done, and this run is to have {total}: nothing would be left",
            where=where,
            hint="the length counts the steps that are done: raise --max-steps or "
            "--num-train-epochs",
        )


def _require_same_adapter(
    settings: "Settings", targets: tuple[str, ...], found: HfCheckpoint
) -> None:
    config = found.adapter
    rows: list[tuple[str, Any, Any]] = [
        ("lora_r", config["r"], settings.lora_r),
        ("lora_alpha", float(config["lora_alpha"]), settings.lora_alpha),
        (
            "target_modules",
            # A name may be qualified, such as self_attn.q_proj; which modules it meant shows in
            # the names of the tensors.
            sorted({name.rpartition(".")[2] for name in config["target_modules"]}),
            sorted(targets),
        ),
        (
            "modules_to_save",
            sorted(map(str, config.get("modules_to_save") or ())),
            sorted(settings.modules_to_save),
        ),
        ("use_rslora", bool(config.get("use_rslora")), settings.use_rslora),
        ("use_dora", bool(config.get("use_dora")), settings.use_dora),
        ("bias", config.get("bias", "none"), "none"),
        ("rank_pattern", config.get("rank_pattern") or {}, {}),
        ("alpha_pattern", config.get("alpha_pattern") or {}, {}),
    ]
    differing = [row for row in rows if row[1] != row[2]]
    if differing:
        lines = "\n".join(
            f"  {name}  then: {_short(then)}  now: {_short(now)}" for name, then, now in differing
        )
        raise CheckpointError(
            f"is of another adapter than this run trains:\n{lines}",
            where=str(found.folder),
            hint=_flags_for(differing),
        )
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise CheckpointError(
            f"was begun with init_lora_weights {excerpt(repr(start), 40)}, {_CHANGED_BASE}",
            where=str(found.folder),
        )


def _flags_for(differing: list[tuple[str, Any, Any]]) -> str | None:
    """Return what to type so that this run trains the adapter of the checkpoint."""
    flags = []
    for name, then, _ in differing:
        flag = f"--{name.replace('_', '-')}"
        if name in ("rank_pattern", "alpha_pattern", "bias"):
            return f"lorafit has no {name} other than the default"
        if isinstance(then, bool):
            flags.append(flag if then else f"--no-{flag[2:]}")
        elif isinstance(then, list):
            flags.append(f"{flag} {excerpt(','.join(then), 200)}")
        else:
            flags.append(f"{flag} {then:g}")
    return " ".join(flags)


def _compare_base(plan: RunPlan, found: HfCheckpoint, allowed: Collection[str]) -> Fact:
    """Return what can be said of the base model; the adapter's shapes are checked elsewhere."""
    then, now = str(found.adapter.get("base_model_name_or_path") or ""), plan.source.name
    shown = (_short(then) or "not recorded", _short(now))
    folder = Path(then)
    if then and (folder / "config.json").is_file():
        if _digests(folder) == _digests(plan.source.path):
            return Fact("base model", *shown, "same")
    elif not then:
        return Fact("base model", *shown, "unknown")
    elif folder.name.casefold() == Path(now).name.casefold():
        return Fact("base model (by its name only)", *shown, "same")
    if BASE in allowed:
        return Fact("base model", *shown, "differs")
    raise CheckpointError(
        f"was trained on the base model {shown[0]}, and this run has {shown[1]}",
        where=str(found.folder),
        hint=f"--model {shown[0]}; or, if the two are one model, --allow-mismatch {BASE}",
    )


def _digests(folder: Path) -> dict[str, str]:
    try:
        weights = {file.name: digest_of_weights(file) for file in folder.glob("*.safetensors")}
        return {**weights, "config.json": sha256_of(folder / "config.json")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _state_facts(found: HfCheckpoint, base: Fact) -> Iterator[Fact]:
    config = found.adapter
    count = f"{len(found.weights)} tensors"
    yield Fact("adapter", count, "names and shapes equal, all finite", "taken over")
    yield Fact("LoRA shape", f"r {config['r']}, alpha {config['lora_alpha']}", "equal", "same")
    yield base
    how = "by name" if found.names else "by order; the file has no names"
    yield Fact("moments", f"{len(found.moments)} x 2", f"{how}; shapes equal", "taken over")
    if found.scaler is not None:
        yield Fact("loss scale", f"{found.scaler['scale']:g}", "for float16 only", "taken over")
    if found.last_loss is not None:
        yield Fact("last loss that was logged", f"{found.last_loss:.4f}", "", "unknown")


def _schedule_facts(plan: RunPlan, found: HfCheckpoint) -> Iterator[Fact]:
    settings, schedule = plan.settings, plan.schedule
    yield Fact("step", str(found.step), str(found.step), "taken over")
    yield _compared("steps in all", found.total_steps, schedule.total_steps)
    epoch = found.step / schedule.steps_per_epoch
    yield _compared("epoch at this step", _round(found.epoch), _round(epoch))
    yield _compared("rows of a micro-batch", found.micro_batch,
                    plan.batch.per_device_train_batch_size)  # fmt: skip
    rate = learning_rate_at(schedule, settings, found.step)
    yield _compared("learning rate of the next step", _round(found.next_rate), _round(rate))
    yield _compared("peak learning rate", found.peak_rate, settings.learning_rate)
    ours = {"betas": [*ADAM_BETAS], "eps": ADAM_EPSILON, "weight_decay": settings.weight_decay}
    for name, then in found.adam.items():
        yield _compared(name, then, ours[name])
    yield _compared("lora_dropout", found.adapter.get("lora_dropout"), settings.lora_dropout)


def _compared(name: str, then: object, now: object) -> Fact:
    standing: Standing = "unknown" if then is None else "same" if then == now else "differs"
    return Fact(name, "not recorded" if then is None else _short(then), _short(now), standing)


def _round(number: float | None) -> float | None:
    """Leave out the last digits, in which two ways to compute one number differ."""
    return None if number is None else float(f"{number:.6g}")


_UNKNOWN = (
    Fact("files undamaged", "no manifest, no hashes", "taken as they are", "unknown"),
    Fact("data, prompts, max_length, tokenizer", "not recorded", "this command's", "unknown"),
    Fact("order of the rows", "not recorded", "that of --seed", "unknown"),
    Fact("training_args.bin", "a pickle", "not opened", "left out"),
    Fact("random numbers", "rng_state.pth", "not opened: drawn in another order", "left out"),
)


def _short(value: object) -> str:
    return excerpt(str(value), 60)
