"""How the libraries underneath are kept quiet, local and predictable."""

import logging
import os
import warnings


def prepare_libraries() -> None:
    """Switch off progress bars, advice and telemetry of the libraries; call it before loading.

    What they would say is either said better in the plan, or is advice to developers.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # transformers could otherwise fetch compiled kernels from the hub: code from elsewhere.
    os.environ.setdefault("USE_HUB_KERNELS", "0")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("bitsandbytes", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate)\..*")
