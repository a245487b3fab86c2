"""The projects that are compared: their pins, and what can be said of how they train."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from environments import Environment

from peers import commands
from peers.commands import Losses, Start

_STACK = ("transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0", "datasets==5.2.0")

TRANSFORMERS = Environment("transformers-peft", _STACK)
TRL = Environment("trl", ("trl==1.16.0", *_STACK))
LITGPT = Environment("litgpt", ("litgpt==0.5.13", "requests==2.34.2", "safetensors==0.8.0"))
LLAMA_FACTORY = Environment(
    "llama-factory",
    ("llamafactory==0.9.5", "transformers==5.6.0", "peft==0.18.1", "trl==0.24.0"),
    removed=("torchvision", "torchaudio"),
    emptied=("torchaudio",),
)
MS_SWIFT = Environment("ms-swift", ("ms_swift==4.6.0", "transformers==5.19.0", "peft==0.20.0"))
AXOLOTL = Environment(
    "axolotl", ("axolotl==0.19.0", "transformers==5.16.1", "peft==0.20.0", "trl==1.9.0")
)


@dataclass(frozen=True)
class Peer:
    """One way to train that is measured."""

    name: str
    environment: Environment | None
    """Where it lives; None: beside this script, which is lorafit itself."""
    command: Callable[[Start], list[str]]
    losses: Callable[[Path], Losses]
    in_every_run: bool = True
    """Whether it is timed unless other peers are named."""
    same_steps: bool = True
    """Whether an optimizer step sees the same number of rows as lorafit's; packed bins do not."""
    prepare: Callable[[Start], list[str] | None] = field(default=lambda start: None)
    """A command that has to run once before the first round, or None; not timed."""
    notes: str = ""


PEERS = {
    "lorafit": Peer("lorafit", None, commands.lorafit("lorafit"), commands.lorafit_losses),
    "lorafit-stock": Peer(
        "lorafit, kernels stock", None, commands.lorafit("stock"), commands.lorafit_losses
    ),
    "lorafit-packing": Peer(
        "lorafit, packing",
        None,
        commands.lorafit("lorafit", packing=True),
        commands.lorafit_losses,
        in_every_run=False,
        same_steps=False,
    ),
    "trainer": Peer(
        "transformers Trainer + PEFT",
        TRANSFORMERS,
        commands.script("train_transformers.py"),
        commands.trainer_losses,
        notes="same rows a step in the same order and the same adapter at the start as lorafit",
    ),
    "trl": Peer(
        "TRL, plain", TRL, commands.script("train_trl.py", "plain"), commands.trainer_losses
    ),
    "trl-packing": Peer(
        "TRL, packing",
        TRL,
        commands.script("train_trl.py", "packing"),
        commands.trainer_losses,
        same_steps=False,
    ),
    "trl-padding-free": Peer(
        "TRL, padding-free",
        TRL,
        commands.script("train_trl.py", "padding-free"),
        commands.trainer_losses,
    ),
    "litgpt": Peer(
        "LitGPT",
        LITGPT,
        commands.litgpt,
        commands.litgpt_losses,
        prepare=commands.prepare_litgpt,
        notes="its own weights format; cosine schedule, it has no constant one; no clipping; "
        "losses are means of micro-batches",
    ),
    "llama-factory": Peer(
        "LLaMA-Factory",
        LLAMA_FACTORY,
        commands.llama_factory,
        commands.trainer_losses,
        in_every_run=False,
        notes="its template without any text adds no end token",
    ),
    "ms-swift": Peer(
        "ms-swift", MS_SWIFT, commands.swift, commands.swift_losses, in_every_run=False
    ),
    "axolotl": Peer(
        "Axolotl, plain",
        AXOLOTL,
        commands.axolotl(False),
        commands.printed_losses,
        in_every_run=False,
    ),
    "axolotl-packing": Peer(
        "Axolotl, packing",
        AXOLOTL,
        commands.axolotl(True),
        commands.printed_losses,
        in_every_run=False,
        same_steps=False,
        notes="its plan of bins leaves the last ones of the epoch out",
    ),
}
