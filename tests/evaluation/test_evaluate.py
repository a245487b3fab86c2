import pytest
from tiny import colour_rows, write_jsonl

from lorafit.config.schema import Settings
from lorafit.data.collate import Collator, EndToEndCollator
from lorafit.data.load import load_source
from lorafit.evaluation.evaluate import evaluate_dataset
from lorafit.evaluation.loading import load_for_inference
from lorafit.hardware.detect import detect_device

pytestmark = pytest.mark.usefixtures("quiet_libraries")


def evaluate(settings, data):
    loaded = load_for_inference(settings, detect_device("cpu"))
    rows = load_source(str(data), settings, loaded.tokenizer).dataset
    report = evaluate_dataset(
        loaded, rows, settings=settings, labelled=False, batch_size=2, max_new_tokens=1
    ).loss
    return report, loaded.batches(2, 64)[0]


@pytest.mark.parametrize("changes", [{}, {"packing": True}, {"padding_free": "true"}])
def test_a_model_is_measured_end_to_end_as_it_would_be_padded(tiny_model, tmp_path, changes):
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(7))
    common = {"model": str(tiny_model()), "max_length": 64, **changes}
    expected, padded = evaluate(Settings(**common | {"padding_free": "false"}), data)
    got, end_to_end = evaluate(Settings(**common), data)
    assert (type(padded), type(end_to_end)) == (Collator, EndToEndCollator)
    assert got.loss == pytest.approx(expected.loss, rel=1e-6)
    assert got[2:] == expected[2:]


def test_a_model_that_cannot_is_measured_with_padding_whatever_is_asked_for(tiny_model, tmp_path):
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(7))
    settings = Settings(model=str(tiny_model()), max_length=64, kernels="stock", packing=True)
    assert type(evaluate(settings, data)[1]) is Collator
