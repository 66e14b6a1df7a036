import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `toy`, which a subprocess runs too

from toy import collect_toy

from offmarl.data.store import Dataset


@pytest.fixture(scope="session")
def collected(tmp_path_factory) -> dict[bool, Path]:
    """A continuous and a discrete dataset that nobody changes."""
    root = tmp_path_factory.mktemp("collected")
    folders = {discrete: root / ("discrete" if discrete else "continuous") for discrete in (False, True)}
    for discrete, folder in folders.items():
        collect_toy(folder, 300, discrete=discrete)
    return folders


@pytest.fixture(params=[False, True], ids=["continuous", "discrete"])
def dataset(request, collected) -> Dataset:
    with Dataset.open(collected[request.param]) as opened:
        yield opened
