import pytest
import torch

from lorafit.config.schema import Settings
from lorafit.evaluation.generation import Sampling, generate_texts
from lorafit.model.build import load_base
from lorafit.model.source import locate_model
from lorafit.model.tokenizer import tokenizer_of

pytestmark = pytest.mark.usefixtures("quiet_libraries")
PROMPTS = ["the", "the colour is red and the colour is blue", "colour", "", "is white the colour"]


@pytest.fixture
def load(tiny_model):
    def load(architecture):
        source = locate_model(str(tiny_model(architecture)))
        base = load_base(Settings(), source, torch.float32, torch.device("cpu"))
        return base.eval(), tokenizer_of(source)

    return load


def write(model, tokenizer, prompts, **options):
    sampling = Sampling(options.pop("max_new_tokens", 12))
    return generate_texts(model, tokenizer, prompts, sampling, pad_token_id=0, **options)


@pytest.mark.parametrize("architecture", ["phi", "llama", "mistral", "gemma3", "qwen2"])
def test_a_batch_writes_what_each_prompt_alone_would(load, architecture):
    model, tokenizer = load(architecture)
    alone = [write(model, tokenizer, [prompt])[0] for prompt in PROMPTS]
    assert len(set(alone)) > 1
    assert write(model, tokenizer, PROMPTS) == alone
    assert write(model, tokenizer, PROMPTS, batch_size=2) == alone


@pytest.mark.parametrize("architecture", ["phi", "llama"])
def test_the_first_token_is_the_likeliest_after_the_prompt_as_trained(load, architecture):
    from lorafit.data.encoding import encode_prompt

    model, tokenizer = load(architecture)
    ids = encode_prompt(tokenizer, "the colour")
    assert (ids[0] == tokenizer.bos_token_id) is (architecture == "llama")
    with torch.no_grad():
        best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    (text,) = write(model, tokenizer, ["the colour"], max_new_tokens=1)
    assert text == tokenizer.decode([best], skip_special_tokens=True)


def test_writing_stops_at_end_of_text_and_leaves_it_out(load):
    model, tokenizer = load("phi")
    with torch.no_grad():
        # The head is made to prefer end-of-text whatever came before.
        model.lm_head.bias[tokenizer.eos_token_id] = 1e4
    assert write(model, tokenizer, PROMPTS) == [""] * len(PROMPTS)


def test_progress_counts_prompts_and_the_mode_is_restored(load):
    model, tokenizer = load("phi")
    model.train()
    seen = []
    write(model, tokenizer, PROMPTS, batch_size=2, progress=lambda *at: seen.append(at))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert model.training


def test_sampling_varies_and_is_decided_by_the_seed(load):
    model, tokenizer = load("phi")

    def sample(seed):
        torch.manual_seed(seed)
        hot = Sampling(12, temperature=1.5, top_p=0.95)
        return generate_texts(model, tokenizer, ["the"] * 3, hot, pad_token_id=0)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
