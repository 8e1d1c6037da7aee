"""The planted loss's labels and gradients against autograd."""

import torch
from torch.nn import functional

from saelab.synthetic.cache import SHARPNESS, planted_gradients, strongest_feature
from saelab.synthetic.config import BernoulliSupportConfig, PlantedConfig
from saelab.synthetic.generator import PlantedSource


def test_gradients_are_those_of_the_loss():
    config = PlantedConfig(
        n_features=20, d_in=8, support=BernoulliSupportConfig(highest=0.2, lowest=0.02)
    )
    source = PlantedSource(config)
    planted = source.rows(300)
    dense = planted.coefficients.to_dense()
    label = strongest_feature(planted.coefficients)
    named = dense.sum(1) > 0
    assert 0 < int((~named).sum()) < 300
    assert torch.equal(label[named], dense[named].argmax(1)) and bool((label[~named] == -1).all())

    features = source.features.double()
    rows = planted.rows.double().requires_grad_()
    loss = functional.cross_entropy(
        SHARPNESS * rows[named] @ features.T, label[named], reduction="sum"
    )
    (expected,) = torch.autograd.grad(loss, rows)
    found = planted_gradients(planted.rows.double(), features, planted.coefficients)
    torch.testing.assert_close(found, expected)
    assert not found[~named].any()
