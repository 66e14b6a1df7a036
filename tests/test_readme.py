"""What the README tells people to type is typed here: the same commands, at a smaller size."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
SMALLER = {
    "collect": "--steps 2000 --num-envs 20 --set behaviour.steps=60 --set behaviour.warm_up=10 "
    "--set behaviour.checkpoint_every=20 --set behaviour.evaluation_episodes=8",
    "decompose": "--set credit.structure_steps=40 --set credit.refit_steps=40 --set credit.pruning_factors=[]",
    "train": "--steps 4 --set train.batch_size=64 --set train.tensorboard=false",
    "evaluate": "--episodes 4",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


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
    snippet, _ = blocks("python")
    subprocess.run([sys.executable, "-c", snippet], check=True, cwd=home, timeout=120)


def use_policy(home: Path) -> None:
    """The three lines that load what the README exported, on frames of the two agents above."""
    _, snippet = blocks("python")
    given = "import torch\nobs = torch.ones(5, 2, 2)\n"
    checked = f"{given}{snippet}\nassert action.shape == (5, 2, 1), action.shape"
    subprocess.run([sys.executable, "-c", checked], check=True, cwd=home, timeout=120)


def smaller(command: str) -> str:
    """The command with fewer steps; `--name` keeps the id that the README's later commands use."""
    subcommand = shlex.split(command)[1]
    shrunk = f"{command} {SMALLER.get(subcommand, '')}"
    if subcommand == "collect":
        env = re.search(r"--env (\S+)", command)[1]
        quality = (re.search(r"--quality (\S+)", command) or ["", "expert"])[1]
        riders = re.search(r"--free-riders (\d+)", command)
        agents = re.search(r"env\.agents=(\d+)", command)
        seed = re.search(r"--seed (\d+)", command)
        name = quality
        name += f"-free-riders-{riders[1]}" if riders else ""
        name += f"-agents-{agents[1]}" if agents else ""
        name += f"-seed-{seed[1]}" if seed else ""
        shrunk += f" --name {env}/{name}-v0"
    return shrunk


def test_the_commands_of_the_readme_work(tmp_path):
    assert len(commands()) >= 15
    own_data(tmp_path)
    for command in commands():
        done = run(smaller(command), tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    use_policy(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_commands_of_the_readme_work_at_full_size(tmp_path):
    own_data(tmp_path)
    for command in commands():
        done = run(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_the_files_that_the_readme_names_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
