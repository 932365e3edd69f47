"""Settings: conversion to dataclasses and back, unknown keys, wrong types, overrides, and field docstrings."""

from __future__ import annotations

import dataclasses
import enum

import pytest
import yaml

from efface import config
from efface.auditing.observers.settings import ObservationSettings
from efface.errors import EffaceError
from efface.training.augment import Views
from efface.training.objectives import CHOICES, OBJECTIVES, SimClr
from efface.training.objectives.shared import ProjectorLayer
from efface.training.optim import Optim, OptimizerType
from efface.training.recipe import Recipe
from efface.unlearning.methods import METHODS, Method
from tests import tiny


@pytest.mark.parametrize("name", sorted(tiny.SMALL))
def test_a_recipe_survives_yaml(name):
    recipe = tiny.recipe(name)
    text = yaml.safe_dump(config.dump(recipe, CHOICES))
    assert config.build(Recipe, yaml.safe_load(text), CHOICES) == recipe


@pytest.mark.parametrize(
    "cls", [*METHODS.values(), *OBJECTIVES.values(), Optim, Views, ObservationSettings], ids=lambda c: c.__name__
)
def test_every_setting_has_a_docstring(cls):
    assert all(text for *_, text in config.describe_fields(cls))
    assert [name for name, *_ in config.describe_fields(cls)] == [f.name for f in dataclasses.fields(cls)]


def test_names_are_those_of_the_modules():
    for table, package in ((METHODS, "unlearning.methods"), (OBJECTIVES, "training.objectives")):
        for key, cls in table.items():
            assert cls.__module__ == f"efface.{package}.{key}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lrr": 1}, "Did you mean 'lr'?"),
        ({"lr": "fast"}, "'lr' cannot be 'fast'"),
        ({"rule": "adam"}, "sgd | adamw"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(EffaceError) as caught:
        config.build(Optim, values)
    assert message in str(caught.value)


def test_a_missing_value_is_named():
    with pytest.raises(EffaceError, match="'objective' is missing"):
        config.build(Recipe, {}, CHOICES)


def test_overrides_reach_into_groups_and_keep_the_rest():
    values = {"method": "scrub", "seed": 1}
    made = config.override(values, ["method.alpha=0.25", "method.optim.lr=1e-3", "recipe.views.crop=null", "seed=4"])
    assert made["method"] == {"name": "scrub", "alpha": 0.25, "optim": {"lr": "1e-3"}}
    assert made["recipe"]["views"]["crop"] is None
    assert values == {"method": "scrub", "seed": 1}
    method = config.parse_choice(METHODS, made["method"], "method")
    assert (method.alpha, method.optim.lr, method.gamma) == (0.25, 1e-3, 1.0)


@pytest.mark.parametrize("text", ["seed", "=1", "seed.deep=1", "a=[1"])
def test_text_that_is_not_an_assignment_is_refused(text):
    with pytest.raises(EffaceError):
        config.override({"seed": 1}, [text])


def test_a_nested_protocol_is_chosen_by_name():
    recipe = config.build(Recipe, {"objective": {"name": "moco", "queue": 7}, "optim": {"rule": "adamw"}}, CHOICES)
    assert recipe.objective.queue == 7
    assert recipe.optim.rule is OptimizerType.ADAMW
    with pytest.raises(EffaceError, match="Did you mean 'moco'"):
        config.build(Recipe, {"objective": "mocho"}, CHOICES)
    assert config.dump(config.parse_choice(METHODS, "scrub", "method"), {Method: METHODS})["name"] == "scrub"


def test_files_that_are_not_a_configuration(tmp_path):
    for name, text in (("list.yaml", "- 1\n"), ("odd.yaml", "a: [\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(EffaceError, match=name):
            config.read(tmp_path / name)


def test_a_partial_nested_mapping_keeps_the_default_of_the_field():
    plain = METHODS["scrub"]()
    changed = config.parse_choice(METHODS, {"name": "scrub", "optim": {"lr": 0.5}}, "method", {Method: METHODS})
    assert plain.optim.clip is not None, "the test needs a default that differs from that of Optim"
    assert changed.optim == dataclasses.replace(plain.optim, lr=0.5)


def test_text_of_an_enumeration_in_python_becomes_its_member():
    """Planted: text that stays text is equal to the member, but not identical, and the other branch is taken."""
    checked = 0
    for cls in (*METHODS.values(), *OBJECTIVES.values(), Optim):
        for f in dataclasses.fields(cls):
            default = getattr(cls, f.name, None)
            for member in type(default) if isinstance(default, enum.Enum) else ():
                assert getattr(cls(**{f.name: member.value}), f.name) is member
                checked += 1
    assert checked > 20
    layers = SimClr(layers=("linear", "relu", "linear")).layers
    assert all(layer is ProjectorLayer(layer) for layer in layers)
