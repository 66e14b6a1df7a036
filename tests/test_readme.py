"""What the README tells people to type is typed here: the same commands, at a smaller size."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documents import blocks, commands, smaller

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = commands(README)


def run(command: str, home: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OFFMARL_HOME": str(home / "home"), "OMP_NUM_THREADS": "1"}
    executable = Path(sys.executable).parent / "offmarl"
    return subprocess.run(
        [str(executable), *shlex.split(command)[1:]],
        capture_output=True,
        text=True,
        env=environment,
        cwd=home,
        timeout=3000,
    )


def own_data(home: Path) -> None:
    snippet, _ = blocks(README, "python")
    subprocess.run([sys.executable, "-c", snippet.code], check=True, cwd=home, timeout=120)


def use_policy(home: Path) -> None:
    """The three lines that load what the README exported, on frames of the two agents above."""
    _, snippet = blocks(README, "python")
    given = "import torch\nobs = torch.ones(5, 2, 2)\n"
    checked = f"{given}{snippet.code}\nassert action.shape == (5, 2, 1), action.shape"
    subprocess.run([sys.executable, "-c", checked], check=True, cwd=home, timeout=120)


# Thirty commands, each a start of Python: many minutes on a machine that does other work.
@pytest.mark.timeout(1800)
def test_the_commands_of_the_readme_work(tmp_path):
    assert len(COMMANDS) >= 15
    own_data(tmp_path)
    for command in COMMANDS:
        done = run(smaller(command), tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    use_policy(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_commands_of_the_readme_work_at_full_size(tmp_path):
    own_data(tmp_path)
    for command in COMMANDS:
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_the_files_that_the_readme_names_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
