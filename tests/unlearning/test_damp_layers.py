"""DAMP measures the same layers in every batch, however many images it has, and leaves frozen weights alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efface.unlearning.layer_inputs import find_image_layers, record_inputs
from efface.unlearning.methods import Damp
from efface.unlearning.methods import damp as module
from tests import tiny
from tests.unlearning.test_class_methods import class_parts, trained, unlearn


class Table(nn.Module):
    """A backbone with a layer whose input has a fixed number of rows, as the position table of Swin v2."""

    def __init__(self, inner: nn.Module, rows: int) -> None:
        super().__init__()
        self.inner, self.rows, self.table = inner, rows, nn.Linear(2, 8)

    def forward(self, x):
        """The features of the backbone."""
        return self.inner(x) + 0 * self.table(torch.ones(self.rows, 2)).sum()


def with_table(rows: int, seed: int = 1):
    """A classifier with such a layer."""
    model = trained(seed, epochs=2)
    model.backbone = Table(model.backbone, rows)
    return model


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 8, 12, 24])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8])
def test_layers_are_those_whose_rows_belong_to_images(rows, count):
    model = with_table(rows).eval()
    images = torch.rand(count, 1, tiny.SIDE, tiny.SIDE)
    wanted = [one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    wanted.remove(model.backbone.table)
    found = find_image_layers(model, images)
    assert set(found) == set(wanted)
    recorded = record_inputs(model, images)
    assert list(recorded) == found and all(len(x) == count for x in recorded.values())


@pytest.mark.parametrize("rows", [1, 2, 5, 11, 22])
@pytest.mark.parametrize("at_once", [5, 7, 11, 21, 22, 256])
def test_a_last_batch_of_any_size_is_measured(rows, at_once, monkeypatch):
    """22 forgotten and 44 retained examples: the last batches hold 1 and others."""
    plain, _ = unlearn(Damp(), trained(epochs=2))
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", at_once)
    model, records = unlearn(Damp(), with_table(rows))
    assert {record["phase"] for record in records} == {"inputs", "project"}
    for name, weight in model.backbone.inner.state_dict().items():
        torch.testing.assert_close(weight, plain.backbone.state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("frozen", ["backbone", "head", "layer1", "weights"])
def test_frozen_weights_stay_and_the_others_move(frozen):
    moved, _ = unlearn(Damp(), trained())
    model = trained()
    before = {name: value.clone() for name, value in model.named_parameters()}
    for name, weight in model.named_parameters():
        weight.requires_grad_(not (frozen in name or (frozen == "weights" and weight.dim() > 1)))
    still = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    result, records = unlearn(Damp(), model, class_parts())
    now, free = dict(result.named_parameters()), dict(moved.named_parameters())
    assert all(torch.equal(now[name], before[name]) for name in still)
    assert all(torch.equal(now[name], free[name]) for name in before if name not in still)
    assert any(record["terms"]["directions"] == 0 for record in records if record["phase"] == "project")
