"""How much a command tells: `--log-level`."""

import logging

from lorafit.errors import UsageError
from lorafit.text import excerpt

LEVELS = {"warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
_LIBRARIES = ("lorafit", "transformers", "peft", "accelerate", "bitsandbytes")


def verify_log_level(name: str) -> None:
    """Refuse a level that does not exist.

    Raises:
        UsageError: it is none of `LEVELS`.
    """
    if name not in LEVELS:
        raise UsageError(
            f"{excerpt(name, 40)!r} is not a log level",
            where="--log-level",
            hint=f"use {', '.join(LEVELS)}",
        )


def set_log_level(name: str) -> int:
    """Let lorafit and, at `debug`, the libraries below say what they do; return the level.

    Call it after `prepare_libraries`, which silences them.
    """
    level = LEVELS[name]
    logger = logging.getLogger("lorafit")
    logger.setLevel(level)
    if level > logging.DEBUG:
        return level
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_info()
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(level)
    return level
