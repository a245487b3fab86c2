"""What `lorafit doctor` is asked beside the machine itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """The options of the command; None where nothing was asked."""

    preset: str | None = None
    """Preset to check on this machine, by the exact estimate."""
    model: str | None = None
    """Model folder or hub id whose files are checked."""
    data: str | None = None
    """File or hub data set that is read and counted."""
    is_deep: bool = False
    """Also train on the device, contact the hub, and read every weight."""
