import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for test_loop.py


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
