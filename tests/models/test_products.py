"""Matrix products of `models.products`, whichever library takes them, are PyTorch's own."""

import pytest
import torch

from mixer_dist.models import products

ONEDNN = pytest.mark.parametrize("by_onednn", [False, True], ids=["torch.mm", "onednn"])
BIASES = {"none": None, "columns": (7,), "rows": (5, 1)}


@ONEDNN
@pytest.mark.parametrize("bias_shape", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("transposed", [(), ("left",), ("right",), ("left", "right")])
def test_product_is_the_product_in_float64(monkeypatch, by_onednn, bias_shape, transposed):
    monkeypatch.setattr(products, "_has_onednn", lambda: by_onednn)
    left, right = drawn(5, 3, "left" in transposed), drawn(3, 7, "right" in transposed)
    bias = None if bias_shape is None else torch.randn(bias_shape)
    expected = left.double() @ right.double() + (0 if bias is None else bias.double())
    torch.testing.assert_close(products.product(left, right, bias), expected.float())


def drawn(rows, columns, is_transposed):
    return torch.randn(columns, rows).t() if is_transposed else torch.randn(rows, columns)
