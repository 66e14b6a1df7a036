import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for bandits.py and episodes.py

import bandits
import episodes

from offmarl.data.table import Transitions


@pytest.fixture(scope="session")
def continuous() -> Transitions:
    return bandits.continuous()


@pytest.fixture(scope="session")
def discrete() -> Transitions:
    return bandits.discrete()


@pytest.fixture(scope="session")
def data(continuous, discrete) -> dict[str, Transitions]:
    """Both, by the type of their actions."""
    return {"continuous": continuous, "discrete": discrete}


@pytest.fixture(scope="module")
def battle() -> Transitions:
    return episodes.battle()
