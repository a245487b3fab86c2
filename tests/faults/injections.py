"""What goes wrong in a command: each function is called in the command's own process, before it."""

import ctypes
import os
import resource
import shutil
import signal
import time
from multiprocessing import util
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


def at_step(step, action):
    """Call `action` once, when step `step` has been reported."""
    from lorafit.cli.progress import TerminalProgress

    report = TerminalProgress.on_step

    def on_step(self, record):
        report(self, record)
        if record.step == step:
            try:
                action()
            except OSError as problem:
                # A run forgives its terminal an OSError: a fault that was not injected must show.
                raise RuntimeError(f"the fault could not be injected: {problem}") from problem

    TerminalProgress.on_step = on_step


def send_self(number):
    os.kill(os.getpid(), number)


# -- Signals and kills ---------------------------------------------------------------------


def signal_at_step(step, number, again=None):
    """Send a signal, perhaps two, to the process after a step."""

    def act():
        send_self(number)
        if again is not None:
            send_self(again)

    at_step(step, act)


def signal_in_micro_step(count, number):
    """Send a signal from within the forward pass of the `count`-th micro-batch."""
    from lorafit.training import trainer

    compute, done = trainer.micro_batch_loss, [0]

    def loss(*arguments):
        done[0] += 1
        if done[0] == count:
            send_self(number)
        return compute(*arguments)

    trainer.micro_batch_loss = loss


def signal_in_save(step, number):
    """Send a signal while the checkpoint of a step is being written."""
    from lorafit.training.checkpoints import state

    save = state.save_optimizer

    def save_optimizer(optimizer, folder):
        save(optimizer, folder)
        if folder.name.endswith(f"-{step}"):
            send_self(number)

    state.save_optimizer = save_optimizer


def signal_in_validation(number):
    """Send a signal in the first validation."""
    from lorafit.cli.progress import TerminalProgress

    def on_evaluation(self, step, done, total):
        if done == 1:
            send_self(number)

    TerminalProgress.on_evaluation = on_evaluation


def signal_before_loading(number):
    """Send a signal when the weights are about to be read."""
    from lorafit.training import loading

    load = loading.load_model

    def load_model(plan):
        send_self(number)
        time.sleep(0.2)
        return load(plan)

    loading.load_model = load_model


def kill_at_point(step, point):
    """Kill the process at the `point`-th flush or rename of the save of a step.

    Point 0 is before anything is written.
    """
    from lorafit.training import trainer

    write, fsync, replace = trainer.write_checkpoint, os.fsync, os.replace
    active, count = [False], [0]

    def strike():
        if active[0]:
            if count[0] == point:
                send_self(signal.SIGKILL)
            count[0] += 1

    def write_checkpoint(run_dir, number, *more):
        active[0] = number == step
        strike()
        folder = write(run_dir, number, *more)
        strike()
        if active[0]:
            (run_dir.parent / "points").write_text(str(count[0]))
        active[0] = False
        return folder

    def after(call):
        def patched(*arguments, **options):
            call(*arguments, **options)
            strike()

        return patched

    trainer.write_checkpoint = write_checkpoint
    os.fsync, os.replace = after(fsync), after(replace)


def pause(step, seconds):
    """Stop the process in the middle of the next step; it is continued from outside."""
    from faults.outside import continue_later
    from lorafit.training import trainer

    compute, armed = trainer.micro_batch_loss, []

    def loss(*arguments):
        if armed:
            armed.clear()
            continue_later(os.getpid(), seconds)
            send_self(signal.SIGSTOP)
        return compute(*arguments)

    trainer.micro_batch_loss = loss
    at_step(step, lambda: armed.append(True))


# -- Storage -------------------------------------------------------------------------------


def own_mounts():
    """Give the process file systems of its own; it may then mount what it likes."""
    library = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    flags = _CLONE_NEWNS if user == 0 else _CLONE_NEWNS | _CLONE_NEWUSER
    if library.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    # Where the root is shared, as systemd makes it, every mount would appear outside too.
    if library.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "unshare: the mounts stay shared")
    return library


def small_disk(folder, num_bytes, copy_to, read_only_at=None):
    """Let the run folder lie on a disk of `num_bytes`; copy it out at the end.

    With `read_only_at`, the disk becomes read-only after that step.
    """
    library = own_mounts()
    view = f"{folder}-read-only"
    for path in (folder, view):
        Path(path).mkdir(parents=True)

    def mount(source, target, flags, kind=None, options=None):
        paths = (None if path is None else os.fsencode(path) for path in (source, target))
        if library.mount(*paths, kind, flags, options):
            problem = ctypes.get_errno()
            raise OSError(problem, f"mount: {os.strerror(problem)}", target)

    mount("tmpfs", folder, 0, b"tmpfs", f"size={num_bytes}".encode())
    if read_only_at is not None:
        # The run will hold its lock and its logs open, and the kernel makes no mount read-only
        # (EBUSY) through which a file is open for writing. So a view of the disk becomes read-only
        # now, while nothing is open, and is laid over the run folder after the step: no moment
        # is left in which a thread of the run could open a file through it.
        mount(folder, view, _MS_BIND)
        mount(None, view, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
        at_step(read_only_at, lambda: mount(view, folder, _MS_BIND))
    # The disk check before the run would refuse it: it is the check's failing that is tested.
    import lorafit.training.planning.plan

    lorafit.training.planning.plan.require_disk_space = lambda *arguments: None
    util.Finalize(None, shutil.copytree, (folder, copy_to), exitpriority=0)


def limit_files(num_bytes):
    """Let no file grow beyond `num_bytes`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def remove_folder(folder, step):
    """Delete the run folder after a step."""

    def act():
        # At one stroke first: the tracker's thread may still make files in it.
        gone = f"{folder}-gone"
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)

    at_step(step, act)


def failing_fsync(errno, step):
    """Let every flush in the save of a step fail."""
    from lorafit.training import trainer

    write, fsync = trainer.write_checkpoint, os.fsync

    def fail(descriptor):
        raise OSError(errno, os.strerror(errno))

    def write_checkpoint(run_dir, number, *more):
        os.fsync = fail if number == step else fsync
        return write(run_dir, number, *more)

    trainer.write_checkpoint = write_checkpoint


def full_event_log():
    """Let the event log, and nothing else, lie on a full disk."""
    from lorafit.report.events import EventLog

    on_start = EventLog.on_start

    def full(self, num_steps, first_step):
        on_start(self, num_steps, first_step)
        self.path = Path("/dev/full")

    EventLog.on_start = full


# -- Streams, network, clock ---------------------------------------------------------------


def full_stderr():
    """Let every word for people fail with a full disk, once the plan has been shown."""
    from lorafit.training import run

    train = run.run_training

    def full(*arguments, **options):
        descriptor = os.open("/dev/full", os.O_WRONLY)
        os.dup2(descriptor, 2)
        return train(*arguments, **options)

    run.run_training = full


def closed_stderr():
    """Let the reader of stderr leave, once the plan has been shown."""
    from lorafit.training import run

    train = run.run_training

    def closed(*arguments, **options):
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        os.close(reader)
        return train(*arguments, **options)

    run.run_training = closed


def no_network():
    """Take every network interface away, the loopback too."""
    library = ctypes.CDLL(None, use_errno=True)
    flags = 0x40000000 if os.getuid() == 0 else 0x40000000 | _CLONE_NEWUSER
    if library.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")


def broken_tracker():
    """Let TensorBoard's writer raise whatever it is asked."""
    from torch.utils.tensorboard.writer import SummaryWriter

    def fail(self, *arguments, **options):
        raise ConnectionError("the tracker is down")

    SummaryWriter.add_scalar = SummaryWriter.add_scalars = fail


def jumping_clock():
    """Let the wall clock go back an hour at every look."""
    now = [2_000_000_000.0]

    def back():
        now[0] -= 3600
        return now[0]

    time.time = back


# -- Numbers and memory --------------------------------------------------------------------


def bad_loss(step, factor):
    """Multiply the loss of an optimizer step."""
    from lorafit.training import trainer

    compute = trainer.micro_batch_loss

    def loss(model, *more):
        value = compute(model, *more)
        return value * factor if _next_step(model) == step and model.training else value

    _watch_steps()
    trainer.micro_batch_loss = loss


_DONE = [0]


def _next_step(model):
    return _DONE[0] + 1


def _watch_steps():
    from lorafit.cli.progress import TerminalProgress

    report, start = TerminalProgress.on_step, TerminalProgress.on_start

    def on_start(self, num_steps, first_step):
        start(self, num_steps, first_step)
        _DONE[0] = first_step

    def on_step(self, record):
        report(self, record)
        _DONE[0] = record.step

    TerminalProgress.on_step, TerminalProgress.on_start = on_step, on_start


def limit_memory(extra_bytes, step):
    """Limit the address space, from a step on, to what is in use then and `extra_bytes`."""
    import psutil

    def limit():
        total = psutil.Process().memory_info().vms + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (total, total))

    at_step(step, limit)


def kill_workers(step):
    """Kill the data loader's processes after a step."""

    def act():
        import psutil

        for child in psutil.Process().children():
            child.kill()

    at_step(step, act)


# -- One of several processes --------------------------------------------------------------


def in_micro_step(count, change):
    """Let `change` see the loss of the `count`-th micro-batch of this process and replace it."""
    from lorafit.training import trainer

    compute, done = trainer.micro_batch_loss, [0]

    def loss(*arguments):
        done[0] += 1
        value = compute(*arguments)
        return change(value) if done[0] == count else value

    trainer.micro_batch_loss = loss


def spoil_micro_step(count):
    """Make the loss of a micro-batch not a number."""
    in_micro_step(count, lambda loss: loss * float("nan"))


def exhaust_micro_step(count):
    """Run out of memory in a micro-batch."""

    def fail(loss):
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    in_micro_step(count, fail)


def exhaust_in_pass(count, where):
    """Run out of memory in the middle of a micro-batch's pass.

    `where` is `forward` or `backward` of the second layer, `gather` the buffer that the weights of
    a layer are gathered into, and `always` every such buffer from then on.
    """
    import torch

    from lorafit.model.build import decoder_layers
    from lorafit.training import trainer

    compute, done = trainer.micro_batch_loss, [0]

    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def fail_in_backward(module, inputs, output):
        (output[0] if isinstance(output, tuple) else output).register_hook(fail)

    def fail_gathers(always):
        from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

        allocate, calls = DefaultAllGather.allocate, [0]

        def allocate_or_fail(self, *arguments, **options):
            calls[0] += 1
            if calls[0] == 2 or (always and calls[0] > 2):
                fail()
            return allocate(self, *arguments, **options)

        DefaultAllGather.allocate = allocate_or_fail

    def loss(model, *arguments):
        done[0] += 1
        if done[0] != count:
            return compute(model, *arguments)
        layer = decoder_layers(model.get_base_model())[1]
        if where in ("gather", "always"):
            fail_gathers(where == "always")
            return compute(model, *arguments)
        if where == "forward":
            handle = layer.register_forward_pre_hook(fail)
        else:
            handle = layer.register_forward_hook(fail_in_backward)
        try:
            return compute(model, *arguments)
        finally:
            handle.remove()

    trainer.micro_batch_loss = loss


def exhaust_validation(count):
    """Run out of memory in the middle of the `count`-th pass of validation."""
    import torch

    from lorafit.model.build import decoder_layers
    from lorafit.training import trainer

    evaluate, done = trainer.evaluate_loss, [0]

    def fail(*arguments):
        done[0] += 1
        if done[0] == count:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def evaluate_loss(model, *arguments):
        handle = decoder_layers(model.get_base_model())[1].register_forward_pre_hook(fail)
        try:
            return evaluate(model, *arguments)
        finally:
            handle.remove()

    trainer.evaluate_loss = evaluate_loss


def fail_micro_step(count):
    """Meet an error that this process alone has."""

    def fail(loss):
        from lorafit.errors import StorageError

        raise StorageError("the disk is gone", where="/data")

    in_micro_step(count, fail)


def other_fingerprint():
    """See other data than the other processes."""
    from lorafit.training.processes import agreement

    take = agreement.fingerprint_of
    agreement.fingerprint_of = lambda plan: {**take(plan), "data_sha256": "other"}


def sleep_before_saves(seed):
    """Come to every save after a random delay."""
    import random

    from lorafit.training.trainer import LoraTrainer

    save, delays = LoraTrainer._save_checkpoint, random.Random(seed)

    def save_later(self, *arguments):
        time.sleep(delays.random() / 5)
        save(self, *arguments)

    LoraTrainer._save_checkpoint = save_later
