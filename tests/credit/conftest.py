import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `recording`

from recording import HASTY, QUICK, record

from offmarl.behaviour.random import RandomPolicy
from offmarl.credit.macca import MaccaConfig
from offmarl.data.collect import collect
from offmarl.data.store import Dataset
from offmarl.data.table import Transitions
from offmarl.data.writer import Writer
from offmarl.envs.registry import make


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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
def _collected(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scm") / "random-v0"
    env = make("scm_a", num_envs=40, options={"agents": 3})
    with Writer(folder, env.spec, id="scm_a/random-v0") as writer:
        collect(env, RandomPolicy(env.spec), writer, 2_000, seed=0)
    return folder


@pytest.fixture
def dataset(_collected, tmp_path) -> Dataset:
    """A small dataset in a folder of its own."""
    folder = tmp_path / "scm_a" / "random-v0"
    shutil.copytree(_collected, folder)
    with Dataset.open(folder) as opened:
        yield opened
