import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `recording`

from recording import HASTY, QUICK, record

from offmarl.credit.macca import MaccaConfig
from offmarl.data.store import Dataset
from offmarl.data.table import Transitions


@pytest.fixture(scope="session")
def scm() -> tuple[Transitions, torch.Tensor]:
    """Transitions with individual causes, and the true rewards [R, N]."""
    return record("scm_a", 12_000, options={"agents": 3})


@pytest.fixture
def quick() -> MaccaConfig:
    return MaccaConfig(**QUICK)


@pytest.fixture
def hasty() -> MaccaConfig:
    """For tests that need a credit, not a good one."""
    return MaccaConfig(**HASTY)


@pytest.fixture(scope="session")
def _collected(random_dataset) -> Path:
    return random_dataset("scm_a", 2_000, 40, agents=3)


@pytest.fixture
def dataset(_collected, tmp_path) -> Dataset:
    """A small dataset in a folder of its own."""
    folder = tmp_path / "scm_a" / "random-v0"
    shutil.copytree(_collected, folder)
    with Dataset.open(folder) as opened:
        yield opened
