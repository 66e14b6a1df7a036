"""A task of two agents, a table of random numbers for it, and runs that train on it."""

from pathlib import Path
from typing import Any

import torch

from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.learners.registry import make_learner
from offmarl.settings import configure
from offmarl.streams import stream
from offmarl.training.loop import TrainConfig, train
from offmarl.training.run import RunFolder

NAMES = ("red", "blue")
SPEC = EnvSpec(
    id="walk",
    agents=NAMES,
    groups=(NAMES,),
    action_type="continuous",
    obs_names=(("x", "y"),) * 2,
    action_names=(("u",),) * 2,
    horizon=10,
)
VALUES = {"hidden": [8, 8]}


def table() -> Transitions:
    generator = stream(0, "walk")
    arrays = {
        "obs": torch.randn(220, 2, 2, generator=generator),
        "action": torch.rand(220, 2, 1, generator=generator) * 2 - 1,
        "team_reward": torch.randn(220, generator=generator),
        "terminated": torch.zeros(220),
        "truncated": torch.zeros(220),
    }
    return Transitions.from_arrays(SPEC, arrays, torch.arange(0, 221, 11))


def record(
    name: str = "walk/test-v0/td3bc-team-s0-1",
    seeds: tuple[int, ...] = (0, 1),
    learner: str = "td3bc",
    task: EnvSpec = SPEC,
    values: dict[str, Any] = VALUES,
) -> dict[str, Any]:
    """What run.json says of a run that has not begun."""
    return {
        "id": name,
        "status": "running",
        "dataset": {"id": "walk/test-v0", "path": "", "sha256": ""},
        "env": task.model_dump(mode="json"),
        "learner": learner,
        "learner_config": values,
        "rewards": "team",
        "seeds": list(seeds),
    }


def new_run(folder: Path, **about: object) -> RunFolder:
    return RunFolder.create(folder, record(**about))


def config(**values: object) -> TrainConfig:
    usual = {"steps": 40, "batch_size": 16, "log_every": 5, "checkpoint_every": 10, "tensorboard": False}
    return configure(TrainConfig, {**usual, **values}, "train")


def run_training(
    run: RunFolder, resume: bool = False, progress=None, learner: str = "td3bc", **values: object
) -> None:
    made = make_learner(learner, SPEC, VALUES, run.record["seeds"])
    train(made, table(), config(**values), run, resume, progress)
