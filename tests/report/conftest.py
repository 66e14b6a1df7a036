import pytest

from offmarl.behaviour.random import RandomPolicy
from offmarl.credit.relabel import CreditReport, decompose
from offmarl.data.collect import collect
from offmarl.data.store import Dataset
from offmarl.data.writer import Writer
from offmarl.envs.registry import make

HASTY = {"structure_steps": 100, "refit_steps": 60, "pruning_factors": (), "width": 16, "fallback": False}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Dataset:
    """Three agents whose causes and true rewards are known."""
    folder = tmp_path_factory.mktemp("scm") / "random-v0"
    env = make("scm_a", num_envs=40, options={"agents": 3})
    with Writer(folder, env.spec, id="scm_a/random-v0") as writer:
        collect(env, RandomPolicy(env.spec), writer, 2_000, seed=0)
    with Dataset.open(folder) as opened:
        yield opened


@pytest.fixture(scope="session")
def report(dataset) -> CreditReport:
    """A decomposition of it, made in a hurry."""
    return decompose(dataset, values=HASTY)
