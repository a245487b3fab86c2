"""A run as every process but the first one sees it: the same steps, and no word or file of it."""

from lorafit.report.run_record import NoRecord
from lorafit.training.guard.explain import errors_explained
from lorafit.training.guard.signals import StopRequest
from lorafit.training.loading import keep_products, load_for
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.processes.agreement import follow
from lorafit.training.processes.distributed import World
from lorafit.training.steps import take_steps


def follow_training(plan: RunPlan, world: World) -> None:
    """Take part in the run that the first process leads with `run_training`.

    Raises:
        LorafitError: as `run_training`; or what ended another process.
    """
    with StopRequest() as stop, errors_explained(plan):
        start = follow(world, plan)
        if start.is_complete:
            return
        plan.require_fit()
        plan.verify_free_memory()
        model, device, _ = load_for(plan, world)
        keep_products(plan, start, world)
        take_steps(plan, start, model, device, (), NoRecord(), stop, None, world)
        # The first process still writes the adapter; a failure of that is one of all.
        world.meet()
