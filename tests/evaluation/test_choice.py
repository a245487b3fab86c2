import pytest
import torch

from lorafit.evaluation.choice import choose_continuations
from lorafit.evaluation.loading import LoadedModel
from lorafit.model.build import load_base
from lorafit.model.source import locate_model
from lorafit.model.tokenizer import PadToken, tokenizer_of

pytestmark = pytest.mark.usefixtures("quiet_libraries")


@pytest.fixture
def loaded(tiny_model):
    from lorafit.config.schema import Settings

    source = locate_model(str(tiny_model("phi")))
    device = torch.device("cpu")
    base = load_base(Settings(), source, torch.float32, device).eval()
    return LoadedModel(base, tokenizer_of(source), PadToken(0, ""), device, "", False)


def mean_log_probability(loaded, context, option):
    before = loaded.tokenizer(context, add_special_tokens=False)["input_ids"]
    after = loaded.tokenizer(option, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
    steps = range(len(before) - 1, len(before) + len(after) - 1)
    return sum(float(logits[t, i]) for t, i in zip(steps, after, strict=True)) / len(after)


def test_chooses_the_option_that_scores_best_alone(loaded):
    contexts = ["the colour is", "red", "blue and white and red and"]
    options = [" red", " the colour of blue", " white"]
    expected = [
        max(options, key=lambda option, c=context: mean_log_probability(loaded, c, option))
        for context in contexts
    ]
    # Batches of 2 cut through the options of a context and pad rows of unequal length.
    assert choose_continuations(loaded, contexts, options, batch_size=2) == expected
    assert choose_continuations(loaded, contexts, options) == expected


def test_nothing_to_choose_for_gives_nothing(loaded):
    assert choose_continuations(loaded, [], [" red"]) == []
