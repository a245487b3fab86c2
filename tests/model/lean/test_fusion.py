import pytest
import torch

from lorafit.model.lean import fusion


@pytest.fixture(autouse=True)
def _as_before():
    yield
    fusion.fuse(False)
    fusion._compiled.clear()
    torch._dynamo.reset()


def test_a_function_runs_as_written_until_it_is_told_to_fuse():
    @fusion.fusible
    def double(values):
        return values * 2

    assert torch.equal(double(torch.ones(2)), torch.full((2,), 2.0))
    assert not fusion._compiled


def test_where_the_compiler_fails_the_function_runs_as_written_and_the_reason_is_kept(monkeypatch):
    def broken(function, **options):
        def run(*arguments):
            raise RuntimeError("\nno compiler here\nand a long trace")

        return run

    @fusion.fusible
    def double(values):
        return values * 2

    monkeypatch.setattr(torch, "compile", broken)
    fusion.fuse(True)
    assert torch.equal(double(torch.ones(2)), torch.full((2,), 2.0))
    assert fusion.fusion_failure() == "torch.compile failed on double: no compiler here"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["phi", "llama", "gemma3"])
def test_fused_layers_give_the_same_gradients_at_every_length(adapted, gradients, architecture):
    expected = gradients(adapted(architecture))
    fusion.fuse(True)
    model = adapted(architecture)
    got = gradients(model)
    assert fusion.fusion_failure() is None
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0)
    for name in expected[1]:
        torch.testing.assert_close(got[1][name], expected[1][name], rtol=1e-3, atol=1e-6)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for length in (7, 9, 13, 21):
        ids = torch.arange(3, 3 + length).view(1, -1)
        model(input_ids=ids, labels=ids).loss.backward()
    # Dynamic shapes: other lengths take the kernels that are there, but for a first recompilation.
    again = torch._dynamo.utils.counters["stats"]["unique_graphs"] - compiled
    assert again <= compiled
