"""Attention of documents on a CPU: the values and gradients of PyTorch's, and no memory kept."""

import ctypes
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from lorafit.model.attention import block_attention
from lorafit.model.document_attention import document_attention
from tests.tiny import child_environment

LENGTHS = (5, 1, 9)


def heads(count, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lying = torch.randn(1, sum(LENGTHS), count, 6, generator=generator, dtype=torch.float64)
    return lying.to(dtype).transpose(1, 2).requires_grad_()


def by_the_book(query, key, value, scaling, window):
    """Return attention written out over all tokens at once, [1, N, H, E]."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    position = torch.arange(sum(LENGTHS))
    distance = position[:, None] - position[None, :]
    document = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    seen = (document[:, None] == document[None, :]) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    scores = (query @ key.transpose(2, 3)) * scaling
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 4, 50])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_values_and_gradients_are_those_of_the_formula(key_heads, window):
    inputs = heads(4), heads(key_heads, seed=1), heads(key_heads, seed=2)
    wanted = by_the_book(*inputs, 0.3, window)
    found = document_attention(*inputs, LENGTHS, scaling=0.3, window=window)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    weights = torch.randn(wanted.shape, dtype=torch.float64)
    for own, expected in zip(
        torch.autograd.grad(found, inputs, weights),
        torch.autograd.grad(wanted, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(own, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("window", [None, 4])
def test_the_way_of_other_devices_and_of_dropout_gives_the_same(window):
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    inputs = heads(4), heads(2, seed=1), heads(2, seed=2)
    options = {"cu_seq_lens_q": True, "document_lengths": LENGTHS, "sliding_window": window}
    # A share of dropout that never drops: the function above has none.
    found, _ = block_attention(module, *inputs, None, dropout=1e-15, scaling=0.3, **options)
    wanted = document_attention(*inputs, LENGTHS, scaling=0.3, window=window)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_in_32_bit_it_is_what_pytorch_computes_for_a_document():
    inputs = heads(4, torch.float32), heads(4, torch.float32, 1), heads(4, torch.float32, 2)
    found = document_attention(*inputs, LENGTHS)
    parts = zip(*(torch.split(each, LENGTHS, 2) for each in inputs), strict=True)
    each = [functional.scaled_dot_product_attention(*part, is_causal=True) for part in parts]
    assert torch.equal(found, torch.cat(each, 2).transpose(1, 2))


def test_in_16_bit_it_is_no_less_exact_than_pytorch():
    inputs = [heads(4, torch.bfloat16, seed) for seed in range(3)]
    truth = by_the_book(*(each.detach().double() for each in inputs), 6**-0.5, None)
    parts = zip(*(torch.split(each, LENGTHS, 2) for each in inputs), strict=True)
    stock = torch.cat(
        [functional.scaled_dot_product_attention(*part, is_causal=True) for part in parts], 2
    ).transpose(1, 2)
    own = document_attention(*inputs, LENGTHS)
    assert own.dtype == torch.bfloat16
    assert (own.double() - truth).abs().max() <= (stock.double() - truth).abs().max()


def test_it_keeps_its_inputs_and_output_alone():
    inputs = [heads(4, torch.bfloat16, seed) for seed in range(3)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        document_attention(*inputs, LENGTHS)
    sizes = [each.numel() * each.element_size() for each in kept]
    exponents = 4 * 4 * sum(LENGTHS)  # one number of 32 bit a head and token
    assert sum(sizes) == 4 * 2 * inputs[0].numel() + exponents


_MANY_LENGTHS = """
import ctypes, sys, torch
from lorafit.model.document_attention import document_attention

def used():
    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost").split()]
    call = ctypes.CDLL("libc.so.6").mallinfo2
    call.restype = Info
    info = call()
    return info.uordblks + info.hblkhd

def attend(length):
    q, k, v = (torch.randn(1, length, 4, 64, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
               for _ in range(3))
    document_attention(q, k, v, (length,)).sum().backward()

for length in (16, 300):
    attend(length)
before = used()
for length in range(20, 100):
    attend(length)
print((used() - before) / 2**20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc tells what is used")
def test_no_memory_is_kept_for_the_lengths_of_16_bit_documents():
    done = subprocess.run(
        [sys.executable, "-c", _MANY_LENGTHS], capture_output=True, text=True,
        env=child_environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 4  # PyTorch's own in 16 bit: 3 MiB a length
