"""The catalogue that ships with the package: references, cards and the sample."""

import json

import pytest

from offmarl.credit.relabel import rewards_for
from offmarl.data.catalog import catalogue_folder, reference_returns
from offmarl.data.load import load_transitions
from offmarl.data.store import Dataset
from offmarl.data.validate import validate
from offmarl.envs.base import EnvSpec
from offmarl.envs.registry import listing, make

CARDS = sorted(
    path.relative_to(catalogue_folder() / "cards").as_posix()
    for path in (catalogue_folder() / "cards").rglob("*.json")
)
OWN_TASKS = [entry.id for entry in listing() if entry.backend == "offmarl" and entry.needs is None]


@pytest.mark.parametrize("env_id", OWN_TASKS)
def test_every_task_has_reference_returns(env_id):
    references = reference_returns(make(env_id).spec)
    assert references is not None, f"measure them: python recipes/catalogue.py {env_id}"
    assert references["expert"] > references["random"]


@pytest.mark.parametrize("card", CARDS)
def test_cards_describe_the_tasks_as_they_are(card):
    content = json.loads((catalogue_folder() / "cards" / card).read_text())
    env = content["env"]
    assert content["id"] == card.removesuffix(".json")
    assert content["command"].startswith(f"offmarl collect --env {env['id']}")
    if env["backend"] == "offmarl":
        assert EnvSpec.model_validate(env) == make(env["id"]).spec


def test_the_sample_is_a_small_valid_dataset_with_its_truth():
    dataset = Dataset.open(catalogue_folder() / "sample")
    assert dataset.card.bytes <= 2_000_000
    assert validate(dataset) == []
    assert (dataset.hidden["free_rider"].sum(1) == 1).all()
    transitions = load_transitions(dataset)
    true, mean = rewards_for(dataset, "true"), rewards_for(dataset, "mean")
    assert len(transitions) == dataset.card.transitions
    assert (true.sum(1) - mean.sum(1)).abs().max() < 1e-3
    assert not true.allclose(mean)
