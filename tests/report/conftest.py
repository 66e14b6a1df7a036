import pytest

from offmarl.credit.relabel import CreditReport, decompose
from offmarl.data.store import Dataset

HASTY = {"structure_steps": 100, "refit_steps": 60, "pruning_factors": (), "width": 16, "fallback": False}


@pytest.fixture(scope="session")
def dataset(random_dataset) -> Dataset:
    """Three agents whose causes and true rewards are known."""
    folder = random_dataset("scm_a", 2_000, 40, agents=3)
    with Dataset.open(folder) as opened:
        yield opened


@pytest.fixture(scope="session")
def report(dataset) -> CreditReport:
    """A decomposition of it, made in a hurry."""
    return decompose(dataset, values=HASTY)
