"""The model of a run, loaded onto its device, and what is chosen for the machine on the way."""

from typing import TYPE_CHECKING

from lorafit.hardware.visible import show_only
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.processes.distributed import World
from lorafit.training.run_folder.folder import Start

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def load_for(plan: RunPlan, world: World) -> "tuple[PeftModel, torch.device, list[str]]":
    """Return what `load_model` does; of a sharded run, with this process's share of the weights."""
    if not plan.is_sharded:
        return load_model(plan)
    from lorafit.training.processes.sharding import in_turn, open_mesh, shard

    mesh = open_mesh(plan.device.kind, plan.settings.ddp_timeout)

    def load() -> "tuple[PeftModel, torch.device, list[str]]":
        model, device, choices = load_model(plan)
        shard(model, mesh, device)
        return model, device, choices

    return in_turn(load, world)


def load_model(plan: RunPlan) -> "tuple[PeftModel, torch.device, list[str]]":
    """Return the model with its adapter, where it trains, and what was chosen on the way.

    One that will be sharded is in host memory yet: no device need be able to hold it.
    """
    # One process trains on one device: were more visible, the Trainer would split every batch
    # over all of them by its slow DataParallel.
    show_only(plan.device)
    import torch

    from lorafit.memory.malloc import return_freed_blocks, reuse_small_blocks
    from lorafit.model.build import add_adapter, load_base
    from lorafit.model.lean.cpu_products import choose_cpu_products
    from lorafit.model.lean.fusion import fuse
    from lorafit.model.libraries import prepare_libraries

    prepare_libraries()
    if plan.settings.method == "sft":
        # As all imports, before there is a model: see `quick_imports`.
        import lorafit.training.trainer  # noqa: F401
    if plan.device.kind == "cpu":
        # The estimate assumes it, and so does whoever shares the machine.
        return_freed_blocks()
    choices = []
    if plan.model.lean_layers.value:
        fuse(plan.torch_compile.value)
        if plan.device.kind == "cpu":
            choices.append(choose_cpu_products(plan.device.name).reason)
    device = torch.device("cuda:0" if plan.device.kind == "cuda" else plan.device.kind)
    place = torch.device("cpu") if plan.is_sharded else device
    base = load_base(plan.settings, plan.source, getattr(torch, plan.dtype.value), place)
    model, _ = add_adapter(base, plan.settings)
    if multiplies_on_cpu(plan) and reuse_small_blocks():
        choices.append("small blocks of memory are kept for the next layer, not given back")
    return model, device, choices


def keep_products(plan: RunPlan, start: Start, world: World) -> list[str]:
    """Let every process multiply as the run began; return notes where one would choose otherwise.

    A new run goes by the choice of its first process.
    """
    from lorafit.model.lean.cpu_products import cpu_products, keep_cpu_products

    if not multiplies_on_cpu(plan):
        return []
    note = keep_cpu_products(world.decide(lambda: start.cpu_products or cpu_products()))
    return [note] if note else []


def multiplies_on_cpu(plan: RunPlan) -> bool:
    """Return whether the processor multiplies for lean layers, by the product chosen for it."""
    return plan.device.kind == "cpu" and plan.model.lean_layers.value


def compile_failure() -> str | None:
    """Return why the lean layers ran uncompiled though they were to be compiled, if so."""
    from lorafit.model.lean.fusion import fusion_failure

    reason = fusion_failure()
    return f"{reason}; the functions ran as they are written" if reason else None
