"""How many rows an optimizer step takes, and how they are split over passes and devices."""

from dataclasses import dataclass

from lorafit.config.layers import COMMAND_LINE_KINDS, Resolved
from lorafit.errors import ConfigError, ExitCode, Problem


@dataclass(frozen=True)
class BatchPlan:
    """Rows of one optimizer step: micro-batch x accumulation x devices = effective batch."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_devices: int
    effective_batch_size: int
    reason: str
    """Which of the numbers were given and which follow, as a sentence."""


def resolve_batch(resolved: Resolved, num_devices: int) -> BatchPlan:
    """Return the batch of a run on `num_devices` devices.

    Without `effective_batch_size`, it is the product. With it, accumulation follows. Where an
    accumulation was asked for and the effective batch came from a preset, accumulation wins. A
    micro-batch that nobody asked for is lowered to the largest that divides the effective batch;
    an effective batch that nobody asked for moves to the nearest that a micro-batch which was
    asked for divides. On several devices it stays what it is, or the number of them is refused.

    Raises:
        ConfigError: the effective batch cannot be split over the devices, or one that was asked
            for cannot be made of the micro-batch or disagrees with the accumulation asked for.
    """
    settings = resolved.settings
    micro = settings.per_device_train_batch_size
    effective = settings.effective_batch_size
    accumulation = settings.gradient_accumulation_steps
    asked_accumulation = _is_asked_accumulation(resolved)
    product = micro * accumulation * num_devices
    if effective is None:
        return BatchPlan(micro, accumulation, num_devices, product, _product_reason(resolved))
    if asked_accumulation and not resolved.is_explicit("effective_batch_size"):
        reason = (
            f"gradient_accumulation_steps {accumulation} was asked for, so the preset's "
            f"effective batch of {effective} gives way to {product}"
        )
        return BatchPlan(micro, accumulation, num_devices, product, reason)
    if asked_accumulation:
        if product != effective:
            raise _disagreement(resolved, num_devices, product, effective)
        reason = f"the effective batch of {effective} agrees with the accumulation asked for"
        return BatchPlan(micro, accumulation, num_devices, effective, reason)
    return _from_effective(resolved, effective, micro, num_devices)


def _is_asked_accumulation(resolved: Resolved) -> bool:
    # A config group brings an accumulation along; an effective batch that was typed outweighs it.
    accumulation = resolved.origins["gradient_accumulation_steps"].kind
    effective = resolved.origins["effective_batch_size"].kind
    if accumulation == "group" and effective in COMMAND_LINE_KINDS:
        return False
    return resolved.is_explicit("gradient_accumulation_steps")


def _from_effective(resolved: Resolved, effective: int, micro: int, num_devices: int) -> BatchPlan:
    given = resolved.origins["effective_batch_size"]
    fitted, changes = micro, ""
    if effective % num_devices:
        raise _unsplittable(resolved, effective, micro, num_devices)
    if not resolved.is_explicit("per_device_train_batch_size"):
        share = effective // num_devices
        fitted = next(m for m in range(min(micro, share), 0, -1) if share % m == 0)
        if fitted != micro:
            changes = f"; micro-batch {micro} was lowered, as {effective} is no multiple of it"
    unit = fitted * num_devices
    total = effective
    if effective % unit:
        if resolved.is_explicit("effective_batch_size"):
            raise _indivisible(resolved, effective, fitted, num_devices)
        total = max(1, round(effective / unit)) * unit
        changes = f"; {total} is the multiple of {unit} that is nearest to {effective}"
    accumulation = total // unit
    reason = (
        f"the effective batch of {effective} ({given}) and micro-batch {fitted} on "
        f"{_devices(num_devices)} give accumulation {accumulation}{changes}"
    )
    return BatchPlan(fitted, accumulation, num_devices, total, reason)


def _product_reason(resolved: Resolved) -> str:
    micro = resolved.origins["per_device_train_batch_size"]
    accumulation = resolved.origins["gradient_accumulation_steps"]
    if micro.kind == accumulation.kind == "default":
        return "micro-batch and accumulation are the defaults"
    return f"micro-batch from {micro}, accumulation from {accumulation}"


def _unsplittable(resolved: Resolved, effective: int, micro: int, num_devices: int) -> ConfigError:
    """Return the error for devices that cannot share the rows of a step equally.

    The nearest effective batches are multiples of the devices, and of a micro-batch asked for.
    """
    is_asked = resolved.is_explicit("per_device_train_batch_size")
    unit = num_devices * (micro if is_asked else 1)
    below = effective // unit * unit
    batches = f"{below} or {below + unit}" if below else str(unit)
    fewer = next(n for n in range(num_devices, 0, -1) if effective % n == 0)
    more = next((n for n in range(num_devices, effective + 1) if effective % n == 0), None)
    message = (
        f"an effective batch of {effective} cannot be split over {_devices(num_devices)}: "
        f"{effective} is not a multiple of {num_devices}"
    )
    counts = f"{fewer} or {more} devices" if more else _devices(fewer)
    hint = (
        f"the nearest numbers of devices that keep {effective}: {counts}; the nearest values that "
        f"work on {num_devices}: effective_batch_size {batches}"
    )
    return _error(resolved, ("effective_batch_size",), message, hint)


def _indivisible(resolved: Resolved, effective: int, micro: int, num_devices: int) -> ConfigError:
    unit = micro * num_devices
    below = effective // unit * unit
    working = f"{below} or {below + unit}" if below else str(unit)
    message = (
        f"an effective batch of {effective} cannot be made of micro-batch {micro} x "
        f"{_devices(num_devices)}: {effective} is not a multiple of {unit}"
    )
    hint = f"the nearest values that work: effective_batch_size {working}"
    names = ("effective_batch_size", "per_device_train_batch_size")
    return _error(resolved, names, message, hint)


def _disagreement(
    resolved: Resolved, num_devices: int, product: int, effective: int
) -> ConfigError:
    settings = resolved.settings
    message = (
        f"{settings.per_device_train_batch_size} rows x {settings.gradient_accumulation_steps} "
        f"accumulation x {_devices(num_devices)} = {product}, "
        f"but effective_batch_size asks for {effective}"
    )
    hint = "leave out gradient_accumulation_steps (it follows) or effective_batch_size"
    return _error(resolved, ("effective_batch_size", "gradient_accumulation_steps"), message, hint)


def _error(resolved: Resolved, names: tuple[str, ...], message: str, hint: str) -> ConfigError:
    where = " and ".join(f"{name} ({resolved.origins[name]})" for name in names)
    kinds = {resolved.origins[name].kind for name in names}
    code = ExitCode.USAGE if kinds & COMMAND_LINE_KINDS else ExitCode.BAD_INPUT
    return ConfigError([Problem(where, message, hint)], exit_code=code)


def _devices(count: int) -> str:
    return f"{count} device{'' if count == 1 else 's'}"
