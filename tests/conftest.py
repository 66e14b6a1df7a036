import io
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from offmarl import cli
from offmarl.behaviour.random import RandomPolicy
from offmarl.data.collect import collect
from offmarl.data.writer import Writer
from offmarl.envs.registry import make

sys.path.insert(0, str(Path(__file__).parent))  # for documents.py

# The networks of the tests are so small that a second thread only costs.
torch.set_num_threads(1)

LONGEST = {"test_readme.py": 0, "test_docs.py": 1}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: with a file a process they would otherwise run alone at the end."""
    items.sort(key=lambda item: LONGEST.get(item.path.name, len(LONGEST)))


class Ended(NamedTuple):
    """What a command left: its exit code, and what it printed on both streams."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The $OFFMARL_HOME of all commands of a file."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def offmarl(home) -> Callable[..., Ended]:
    """Run a command as a person types it, within this process: starting one takes longer than most commands."""

    def run(command: str, home: Path = home, columns: int = 160) -> Ended:
        out, error = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
            patch.setenv("OFFMARL_HOME", str(home))
            patch.setenv("COLUMNS", str(columns))  # narrower tables break words over lines
            patch.setattr(sys, "argv", ["offmarl", *shlex.split(command)])
            with pytest.raises(SystemExit) as stop:
                cli.main()
        return Ended(stop.value.code, out.getvalue(), error.getvalue())

    return run


@pytest.fixture(scope="module")
def succeed(offmarl) -> Callable[[str], dict[str, Any]]:
    """Run a command with `--json` and return what it answers."""

    def run(command: str) -> dict[str, Any]:
        done = offmarl(command + " --json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def random_dataset(tmp_path_factory) -> Callable[..., Path]:
    """Record random actions in a task; the folder is that of the dataset `<env>/random-v0`."""

    def record(env_id: str, transitions: int, num_envs: int, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("data") / env_id / "random-v0"
        with (
            make(env_id, num_envs, options=options) as env,
            Writer(folder, env.spec, id=f"{env_id}/random-v0") as writer,
        ):
            collect(env, RandomPolicy(env.spec), writer, transitions, seed=0)
        return folder

    return record
