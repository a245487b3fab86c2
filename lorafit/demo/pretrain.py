"""Build the demo's base model: a tiny Phi with its own tokenizer, pre-trained in about a minute.

The model is a real `PhiForCausalLM`. A minute of CPU time is some 800,000 tokens, too few for a
transformer to discover by itself how to copy words from its context (induction heads, see
https://transformer-circuits.pub/2022/in-context-learning-and-induction-heads). So the weights do
not start from plain noise but from a sketch of that circuit, see `sketch_induction`; training
then makes it work, and everything else is learnt from `corpus`.

With equal versions of torch, transformers and tokenizers and the same kind of processor, the same
seed gives the same weights, however many cores there are.
"""

import contextlib
import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.demo import corpus, nli, problem, rules, vocabulary
from lorafit.files import cache_folder, storage_errors

if TYPE_CHECKING:
    import torch
    from transformers import PhiForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"

Progress = Callable[[int, int, float], None]
"""Called after a step with the steps done, the steps in all, and the loss."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, apart from the versions and the thread count."""

    seed: int = 0
    num_documents: int = 31_000
    vocab_size: int = 1536
    """Upper limit of the tokenizer's vocabulary; the corpus has fewer merges to learn."""
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    initializer_range: float = 0.08
    """About 1 / sqrt(hidden_size); the usual 0.02 suits models 20 times as wide."""
    rope_theta: float = 100.0
    """Slowest rotation. Texts are short, so that positions must be told apart at close range."""
    partial_rotary_factor: float = 0.4
    block_tokens: int = 80
    batch_blocks: int = 12
    num_steps: int = 960
    warmup_steps: int = 40
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0


def ensure_demo_model(progress: Progress | None = None, recipe: Recipe | None = None) -> Path:
    """Return the folder of the pre-trained demo model; build it first if the cache lacks it.

    The folder lies in the user's cache folder (`LORAFIT_CACHE_DIR` overrides it) under a name
    made from the recipe and the versions. It is built beside its place and then renamed, so
    that it is either whole or not there; of two processes that build it at once the first wins.

    Raises:
        StorageError: the cache folder cannot be written.
    """
    recipe = recipe or Recipe()
    folder = model_folder(recipe)
    if folder.is_dir():
        return folder
    hint = "free some disk space, or set LORAFIT_CACHE_DIR to a folder you can write to"
    with storage_errors("the demo model cannot be written", folder, hint):
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            build_model(building, recipe, progress)
            _publish(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


def model_folder(recipe: Recipe) -> Path:
    """Return where the model of `recipe` is, or would be, cached."""
    return cache_folder() / f"tiny-phi-{_recipe_hash(recipe)}"


def build_model(folder: Path, recipe: Recipe, progress: Progress | None = None) -> None:
    """Pre-train the model of `recipe` and save it with its tokenizer into `folder`."""
    import torch
    from transformers.utils import logging as transformers_logging

    documents = list(corpus.documents(recipe.seed, recipe.num_documents))
    tokenizer = build_tokenizer(documents, recipe.vocab_size)
    # The caller's random state and gradient mode are its own.
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), single_threaded():
        torch.manual_seed(recipe.seed)
        model = build_initial_model(recipe, tokenizer)
        blocks = _pack(documents, tokenizer, recipe.block_tokens)
        _train(model, blocks, recipe, progress)
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        transformers_logging.enable_progress_bar()


def build_tokenizer(documents: list[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE on `documents`; padding has a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # The prefix space gives a word the same token at the start of a text as inside it.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents[:8000], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_initial_model(recipe: Recipe, tokenizer: "PreTrainedTokenizerFast") -> "PhiForCausalLM":
    """Return the model before its first step, drawn from torch's global random state."""
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    model = PhiForCausalLM(
        PhiConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.num_hidden_layers,
            num_attention_heads=recipe.num_attention_heads,
            max_position_embeddings=512,
            initializer_range=recipe.initializer_range,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": recipe.rope_theta,
                "partial_rotary_factor": recipe.partial_rotary_factor,
            },
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            # Branches start small beside the residual stream, so that depth adds little noise.
            layer.mlp.fc2.weight *= 0.1
            layer.self_attn.dense.weight *= 0.1
        sketch_induction(model, recipe)
    return model


def sketch_induction(model: "PhiForCausalLM", recipe: Recipe) -> None:
    """Turn the first two layers into a rough induction circuit; call it under `no_grad`.

    Layer 0: each head looks a fixed number of tokens back, through the biases of its query and
    key alone. For a rotary pair of frequency w the score at distance n is
    A^2 cos(w (n - offset)), which is largest at n = offset. What it sees is written through the
    matrix `write`. Layer 1: the query asks for the current token, as layer 0 reads it, and
    the key is what layer 0 wrote, an earlier token: so it attends to what followed the last
    time, or to itself if the current token repeats the one just before. It copies what it
    attends to through `turn`, and the output layer starts as the embedding under the same turn,
    so that a copied token is likely, and the current one is not.
    """
    import torch

    hidden = recipe.hidden_size
    head = hidden // recipe.num_attention_heads
    read, write, copy, turn = (_orthogonal(hidden) for _ in range(4))
    half = int(head * recipe.partial_rotary_factor) // 2
    frequencies = recipe.rope_theta ** (-torch.arange(half).float() / half)
    # Scores are divided by sqrt(head): the offset beats its neighbours by about 5.
    size = math.sqrt(5 * math.sqrt(head) / float((1 - torch.cos(frequencies)).sum()))
    look, match = (model.model.layers[i].self_attn for i in (0, 1))
    for index in range(recipe.num_attention_heads):
        rows = slice(index * head, (index + 1) * head)
        offset = max(1, index)
        turned = [torch.cos(frequencies * offset), -torch.sin(frequencies * offset)]
        look.q_proj.bias[rows.start : rows.start + 2 * half] = size * torch.cat(turned)
        look.k_proj.bias[rows.start : rows.start + half] = size
        look.q_proj.weight[rows] *= 0.1
        look.k_proj.weight[rows] *= 0.1
        source = slice((index % 3) * head, (index % 3 + 1) * head)
        match.q_proj.weight[rows] = 1.8 * read[source]
        match.k_proj.weight[rows] = 1.8 * write[:, source].T
    look.v_proj.weight.copy_(read)
    look.dense.weight.copy_(0.25 * write)
    match.v_proj.weight.copy_(copy)
    match.dense.weight.copy_(0.4 * turn @ copy.T)
    model.lm_head.weight.copy_(model.model.embed_tokens.weight @ turn.T)


def _orthogonal(size: int) -> "torch.Tensor":
    import torch

    orthogonal: torch.Tensor = torch.linalg.qr(torch.randn(size, size)).Q
    return orthogonal


def _pack(
    documents: list[str], tokenizer: "PreTrainedTokenizerFast", block_tokens: int
) -> "torch.Tensor":
    """Return token ids [blocks, block_tokens] of the documents, one after the other."""
    import torch

    ids: list[int] = []
    for encoded in tokenizer(documents, add_special_tokens=False)["input_ids"]:
        ids += [*encoded, tokenizer.eos_token_id]
    num_blocks = len(ids) // block_tokens
    return torch.tensor(ids[: num_blocks * block_tokens]).view(num_blocks, block_tokens)


def _train(
    model: "PhiForCausalLM", blocks: "torch.Tensor", recipe: Recipe, progress: Progress | None
) -> None:
    import torch

    optimizer = torch.optim.AdamW(
        _parameter_groups(model, recipe.weight_decay),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _scale(step, recipe))
    order = torch.randperm(len(blocks))
    parameters = list(model.parameters())
    model.train()

    def half_step(half: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        loss = model(input_ids=half, labels=half).loss
        return loss.detach(), torch.autograd.grad(loss, parameters)

    # Two halves of each batch on two threads, each of which computes alone: twice as fast as one
    # where there are two cores, and the same bits however many there are.
    with ThreadPoolExecutor(2, initializer=lambda: torch.set_num_threads(1)) as workers:
        for step in range(recipe.num_steps):
            first = step * recipe.batch_blocks
            batch = blocks[order[torch.arange(first, first + recipe.batch_blocks) % len(blocks)]]
            losses, gradients = zip(*workers.map(half_step, batch.chunk(2)), strict=True)
            for parameter, one, other in zip(parameters, *gradients, strict=True):
                parameter.grad = one.add_(other).div_(2)
            torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, recipe.num_steps, float(sum(losses) / 2))
    model.eval()


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch compute on one thread: sums then have one order, on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parameter_groups(model: "PhiForCausalLM", weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _scale(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    return warmup * (0.51 + 0.49 * math.cos(math.pi * step / recipe.num_steps))


def _publish(building: Path, folder: Path) -> None:
    """Move the finished folder to its place, unless another process was faster."""
    try:
        # mkdtemp makes folders that only their owner may enter; the umask decides instead.
        building.chmod(folder.parent.stat().st_mode & 0o777)
        building.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _recipe_hash(recipe: Recipe) -> str:
    """Hash what decides the weights: the recipe, the sources of text and model, the versions."""
    from importlib.metadata import version

    digest = hashlib.sha256(repr(asdict(recipe)).encode())
    for module in (corpus, nli, problem, rules, vocabulary):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    for package in ("torch", "transformers", "tokenizers"):
        digest.update(version(package).encode())
    return digest.hexdigest()[:16]
