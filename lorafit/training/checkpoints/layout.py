"""The files of a checkpoint by name; needs no torch to be asked."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
OPTIMIZER_FILES = ("optimizer.safetensors", "optimizer.json")
SCHEDULER_FILE = "scheduler.json"
SCALER_FILE = "scaler.json"
RECOVERY_FILE = "recovery.json"
RNG_FILES = ("rng.safetensors", "rng.json")
TRAINER_STATE = "trainer_state.json"

STATE_FILES = (ADAPTER_WEIGHTS, *OPTIMIZER_FILES, SCHEDULER_FILE, *RNG_FILES, TRAINER_STATE)
"""What every checkpoint must hold; with float16 there is also `SCALER_FILE`, and `RECOVERY_FILE`
says how far micro-batches were shrunk after memory ran out."""


def rng_file_of(rank: int) -> str:
    """Return the file of the random state of another process than the first, whose is `RNG_FILES`.

    A run of one process has none.
    """
    return f"rng-{rank}.safetensors"
