"""The head of an imported classifier is tried on its training images: another order of the classes is found."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from efface.data.dataset import Data
from efface.data.sources import load
from efface.interop.head_check import name_classes, require_class_order
from efface.runs import audit, run
from tests.adoption import QUICK, SPLIT, backbone, classifier_folder, drawn, trained, unlearn
from tests.pictures import raises

CPU = torch.device("cpu")
ORDERS = {
    "text": ("1", "10", "2"),  # torchvision's ImageFolder; here 1, 2, 10
    "natural": ("a", "B", "C"),  # timm; here B, C, a
}


def named(names: tuple[str, ...], home: Path, **more: object) -> Path:
    """The pictures with class names, of which ``names`` has the order of the classifier's outputs."""
    x, y = drawn()
    path = home / "named.npz"
    np.savez(path, x=x, y=np.array([names[label] for label in y]))
    return path


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_another_library_is_named_and_fits_when_it_is_stated(order, tmp_path):
    names = ORDERS[order]
    data = load(named(names, tmp_path))
    assert data.classes != names
    raises(
        lambda: require_class_order(Path("their.pth"), backbone(), data, np.arange(120), CPU),
        f"in the order '{order}'", f"--set data.classes={order}", "their.pth", "of 120 training images",
    )  # fmt: skip
    stated = load(named(names, tmp_path), classes=order)
    assert stated.classes == names
    before = backbone().digest()
    require_class_order(Path("their.pth"), backbone(), stated, np.arange(120), CPU)
    assert backbone().digest() == before


def test_an_order_that_no_library_uses_is_written_out(tmp_path):
    data = load(named(("x", "z", "y"), tmp_path))
    raises(
        lambda: require_class_order(Path("f"), backbone(), data, np.arange(120), CPU),
        "although the nearest neighbors of its features answer", "--set 'data.classes=[x, z, y]'",
    )  # fmt: skip
    stated = load(named(("x", "z", "y"), tmp_path), classes=["x", "z", "y"])
    require_class_order(Path("f"), backbone(), stated, np.arange(120), CPU)


def test_a_swap_of_two_among_many_is_enough_for_a_known_order():
    x, y = drawn()
    many = tuple(f"c{number:02d}" for number in range(20))  # of which three have images

    class Head(torch.nn.Module):
        """Twenty outputs of which the trained three stand where the text order has them."""

        def __init__(self, places):
            super().__init__()
            self.inner, self.places = backbone().head, places

        def forward(self, features):
            out = torch.full((len(features), 20), -99.0)
            out[:, self.places] = self.inner(features)
            return out

    model = deepcopy(backbone())
    names = ("a", "B", "zz", *many[3:])
    data = Data.from_arrays(x, y, classes=names)
    orders = {"text": sorted(names), "stated": list(names)}
    model.head = Head([orders["text"].index(name) for name in names[:3]])
    raises(lambda: require_class_order(Path("f"), model, data, np.arange(120), CPU), "--set data.classes=text")
    model.head = Head([0, 1, 2])
    require_class_order(Path("f"), model, data, np.arange(120), CPU)


def test_a_head_that_no_order_explains_is_refused():
    data = Data.from_arrays(*drawn())
    broken = deepcopy(backbone())
    with torch.no_grad():
        broken.head.weight.zero_()
        broken.head.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
        broken.head.bias[2] = 1  # everything is the third class: one in three is right
    rows = np.concatenate([np.flatnonzero(data.y == 0)[:50], np.flatnonzero(data.y == 1)[:50], [2, 5, 8]])
    raises(
        lambda: require_class_order(Path("f"), broken, data, np.sort(rows), CPU),
        "No order of the classes explains it", "check=false",
    )  # fmt: skip


def test_what_is_no_classifier_or_is_as_good_as_its_features_passes():
    data = Data.from_arrays(*drawn())
    require_class_order(Path("f"), trained("simclr"), data, np.arange(120), CPU)
    require_class_order(Path("f"), backbone(), Data.from_arrays(drawn()[0]), np.arange(120), CPU)
    rng = np.random.default_rng(0)
    noise = Data.from_arrays(rng.integers(0, 256, (180, 3, 8, 8)), np.arange(180) % 3)  # nobody knows these classes
    require_class_order(Path("f"), backbone(), noise, np.arange(120), CPU)


def test_names_in_the_configuration_beside_the_weights_number_the_classes(tmp_path):
    data = load(named(("x", "z", "y"), tmp_path))
    home = tmp_path / "model"
    home.mkdir()

    def beside(**config: object) -> tuple[Data, str]:
        (home / "config.json").write_text(json.dumps(config))
        return name_classes(home, data, {"source": "x"})

    found, note = beside(id2label={"0": "X", "1": "z", "2": "y"})
    assert found.classes == ("x", "z", "y") and "'x', 'z', 'y'" in note
    assert [found.classes[label] for label in found.y] == [data.classes[label] for label in data.y]
    assert beside(label_names=["y", "x", "z", "unused"])[0].classes == ("y", "x", "z", "unused")
    useless: list[dict[str, object]] = [
        {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}},
        {"id2label": {"0": "x"}},
        {"id2label": {"0": "x", "1": "z", "2": "cat"}},
        {"id2label": 5},
        {"label_names": ["x", "z", "y", "x"]},
        {},
    ]
    for other in useless:
        assert beside(**other) == (data, "")
    (home / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "z", "2": "y"}}))
    assert name_classes(home, data, {"source": "x", "classes": "text"}) == (data, "")
    (home / "config.json").write_text("{")
    assert name_classes(home, data, None) == (data, "")


def test_a_foreign_classifier_is_unlearned_under_the_classes_it_was_trained_with(tmp_path):
    pictures = named(("1", "10", "2"), tmp_path)
    theirs = classifier_folder(backbone(), tmp_path)
    raises(lambda: unlearn(theirs, pictures, tmp_path / "no"), "--set data.classes=text")
    assert not (tmp_path / "no").exists()
    unlearn(theirs, pictures, tmp_path / "anyway", check=False)
    stated = {"source": str(pictures), "classes": "text"}
    unlearn(theirs, pictures, tmp_path / "out", data=stated, split=SPLIT, method=QUICK)
    opened = run.open_run(tmp_path / "out")
    assert opened.data.classes == ("1", "10", "2") == opened.at_hand.identity.classes
    result = audit.audit_run(tmp_path / "out", {"watch": {"views": 3, "gradient": False}, "device": "cpu"})
    original = result.evidence.original
    right = original.of("retain", "logits").argmax(-1) == original.of("retain", "labels")
    assert right.mean() > 0.9
    # The same names in a list of another order are numbered by the run's own.
    again = run.open_run(tmp_path / "out", run.DataChecks(data={"classes": ["2", "1", "10"]}))
    assert again.data.classes == ("1", "10", "2") and not again.at_hand.difference.changed.any()


def test_a_foreign_classifier_with_names_in_its_configuration_needs_no_statement(tmp_path):
    pictures = named(("x", "z", "y"), tmp_path)
    theirs = classifier_folder(backbone(), tmp_path)
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(config | {"label_names": ["x", "z", "y"]}))
    unlearn(theirs, pictures, tmp_path / "out")
    assert run.open_run(tmp_path / "out").data.classes == ("x", "z", "y")
