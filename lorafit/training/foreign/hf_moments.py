"""The tensors of a foreign checkpoint, put beside those that this run trains."""

from typing import Any, NamedTuple

import torch

from lorafit.errors import CheckpointError
from lorafit.model.build import add_adapter, build_on_meta
from lorafit.model.source import read_config
from lorafit.model.step import make_optimizer
from lorafit.text import excerpt
from lorafit.training.checkpoints import layout
from lorafit.training.foreign.hf_checkpoint import MOMENTS, OPTIMIZER, HfCheckpoint
from lorafit.training.planning.run_plan import RunPlan


class Expected(NamedTuple):
    """What the adapter and the optimizer of this run look like."""

    tensors: dict[str, torch.Size]
    """Of the adapter's file."""
    parameters: list[tuple[str, torch.Size]]
    """Name and shape, in the order of the optimizer's groups."""
    groups: list[dict[str, Any]]
    """`param_groups` of the optimizer's state."""


def expected_of(plan: RunPlan) -> Expected:
    """Return what a planned run's adapter and optimizer look like; no weight is read."""
    from peft import get_peft_model_state_dict

    settings = plan.settings.model_copy(update={"optim": "adamw_torch"})
    with torch.random.fork_rng(devices=[]):
        base = build_on_meta(settings, read_config(plan.source), torch.float32)
        model, _ = add_adapter(base, settings)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    optimizer = make_optimizer(model, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    if plan.settings.optim == "adamw_torch_fused":
        groups = [{**group, "fused": True} for group in groups]
    return Expected(
        {name: tensor.shape for name, tensor in tensors.items()},
        [(names[id(parameter)], parameter.shape) for parameter in parameters],
        groups,
    )


def require_tensors(shapes: dict[str, torch.Size], found: HfCheckpoint) -> None:
    """Refuse an adapter whose tensors are not those of this run, by name and shape.

    Raises:
        CheckpointError: names the first tensor that is not.
    """
    for name in sorted(shapes.keys() | found.weights.keys()):
        then, now = found.weights.get(name), shapes.get(name)
        if then is None or now is None or then.shape != now:
            shown = "is absent" if then is None else f"has the shape {[*then.shape]}"
            wanted = "no such tensor" if now is None else f"{[*now]}"
            raise CheckpointError(
                f"{excerpt(name, 120)} {shown}, and the adapter on this base model has {wanted}",
                where=str(found.folder / layout.ADAPTER_WEIGHTS),
                hint="--model must be the base model that the adapter was trained on",
            )


def in_order(expected: Expected, found: HfCheckpoint) -> dict[str, Any]:
    """Return the moments under the numbers that this run's optimizer gives its parameters.

    Raises:
        CheckpointError: they are of another number of parameters, or of other shapes.
    """
    parameters = expected.parameters
    where = str(found.folder / OPTIMIZER)
    if len(found.moments) != len(parameters):
        raise CheckpointError(
            f"has the moments of {len(found.moments)} parameters, and the adapter has "
            f"{len(parameters)}",
            where=where,
        )
    by_name = dict(zip(found.names or (), found.moments, strict=False))
    uses_names = by_name.keys() == {name for name, _ in parameters}
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for number, (name, shape) in enumerate(parameters):
        entry = by_name[name] if uses_names else found.moments[number]
        for moment in MOMENTS:
            if entry[moment].shape != shape:
                raise CheckpointError(
                    f"{moment} of parameter {number} has the shape {[*entry[moment].shape]}, and "
                    f"{name} has {[*shape]}",
                    where=where,
                    hint="the order of its parameters is another than that of this adapter",
                )
        entries[number] = {
            "step": torch.as_tensor(float(entry["step"])),
            **{moment: entry[moment].float() for moment in MOMENTS},
        }
    return {"state": entries, "param_groups": expected.groups}
