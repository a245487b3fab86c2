"""Fine-tune Phi-2 and other decoder language models with LoRA on the hardware you have.

Importing this package imports neither torch nor transformers: the command line stays fast.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
