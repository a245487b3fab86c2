import json

import pytest
import torch

from lorafit.model.lean import products
from lorafit.model.lean.cpu_products import choose_cpu_products, measure_onednn


@pytest.fixture(autouse=True)
def _as_before():
    yield
    products.use_onednn(False)


@pytest.mark.parametrize("bias", [True, False])
def test_onednn_computes_what_torch_computes(bias):
    inputs, weight = torch.randn(7, 12), torch.randn(5, 12)
    offset = torch.randn(5) if bias else None
    expected = torch.nn.functional.linear(inputs, weight, offset)
    torch.testing.assert_close(products.onednn_product(inputs, weight, offset), expected)
    gradient = torch.randn(64, 5)
    products.use_onednn(True)
    torch.testing.assert_close(products.linear(gradient, weight.t(), None), gradient @ weight)


def test_the_answer_is_measured_once_and_then_kept(tmp_path):
    first = choose_cpu_products("A CPU", tmp_path)
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())["onednn_speed"]
    assert f"{kept:.2f} times" in first.reason
    path.write_text(json.dumps({"schema_version": 1, "onednn_speed": 0.5}))
    second = choose_cpu_products("A CPU", tmp_path)
    assert not second.value
    assert "0.50 times" in second.reason
    path.write_text(json.dumps({"schema_version": 1, "onednn_speed": 2.0}))
    assert choose_cpu_products("A CPU", tmp_path).value


@pytest.mark.parametrize("content", ["", "[]", '{"onednn_speed": "2"}', '{"onednn_speed": -1.0}'])
def test_a_damaged_answer_is_measured_again(tmp_path, content):
    choose_cpu_products("A CPU", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    choose_cpu_products("A CPU", tmp_path)
    assert json.loads(path.read_text())["onednn_speed"] > 0


def test_the_measurement_is_a_ratio_of_speeds():
    assert 0.05 < measure_onednn() < 20


def test_gradients_by_onednn_are_those_of_torch(adapted, gradients):
    expected = gradients(adapted())
    products.use_onednn(True)
    got = gradients(adapted())
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0)
    for name in expected[1]:
        torch.testing.assert_close(got[1][name], expected[1][name], rtol=1e-4, atol=1e-6)


def test_rows_are_rounded_up_to_what_onednn_takes_on_a_cpu():
    rows = torch.empty(300)
    products.use_onednn(False)
    assert products.fitting_rows(300, rows) == 300
    products.use_onednn(True)
    assert [products.fitting_rows(count, rows) for count in (0, 1, 64, 300)] == [0, 64, 64, 320]
    for device in ("cpu", "cuda"):
        with products.tracing_for(device):
            assert products.fitting_rows(300, rows.to("meta")) == 300


def test_only_rows_in_whole_multiples_go_to_onednn():
    products.use_onednn(True)
    weight = torch.randn(5, 12)
    for rows in (64, 65):
        product = products.linear(torch.ones(rows, 12), weight, None)
        assert product.shape == (rows, 5)
        torch.testing.assert_close(product[0], weight.sum(1))
