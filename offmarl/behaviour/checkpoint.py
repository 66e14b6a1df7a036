"""Behaviour policies in a file: one safetensors file that says which task and learner it belongs to."""

import json
from pathlib import Path

import torch
from pydantic import ValidationError

from offmarl.atomic import replacing
from offmarl.behaviour.online import Checkpoint, OnlineConfig, behaviour_learner
from offmarl.behaviour.schedule import Schedule
from offmarl.behaviour.self_play import SelfPlayConfig, self_play_learner
from offmarl.behaviour.tuning import behaviour_config
from offmarl.envs.base import EnvSpec, Policy
from offmarl.errors import DataError
from offmarl.training.acting import LearnerPolicy
from offmarl.training.checkpoint import read_tensors, write_tensors
from offmarl.training.units import UnitPolicy

FORMAT = "offmarl behaviour policy 1"


def save_policy(path: Path, spec: EnvSpec, config: Schedule, seed: int, checkpoint: Checkpoint) -> None:
    """Write a checkpoint of online training so that it can act again on its own."""
    metadata = {
        "format": FORMAT,
        "env": spec.model_dump_json(),
        "config": json.dumps(vars(config)),
        "seed": str(seed),
        "step": str(checkpoint.step),
        "return": repr(checkpoint.episode_return),
    }
    with replacing(path) as temporary:
        write_tensors(temporary, checkpoint.tensors, metadata)


def load_policy_file(
    path: Path, device: torch.device | str = "cpu", spec: EnvSpec | None = None, epsilon: float = 0.0
) -> tuple[Policy, EnvSpec]:
    """The policy in `path`, and the task it was trained on.

    Policies of rendered tasks act in `spec` where it is given, on another side or with more agents, and take a share
    `epsilon` of choices at random. Raises `DataError` for a file that is missing, damaged or no behaviour policy,
    `UsageError` where such a policy cannot act in `spec`.
    """
    metadata, tensors = read_tensors(path, "behaviour policy", device)
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{path} is no behaviour policy: its format is {metadata.get('format')!r}, not {FORMAT!r}"
        )
    try:
        trained_on = EnvSpec.model_validate_json(metadata["env"])
    except ValidationError as error:
        raise DataError(
            f"{path}: the description of its task is damaged ({error.errors()[0]['msg']})"
        ) from error
    stored = json.loads(metadata["config"])
    config = behaviour_config(trained_on, stored | stored.pop("learner", {}))
    seed = int(metadata["seed"])
    if isinstance(config, SelfPlayConfig):
        player = self_play_learner(trained_on, config, seed, device)
        player.load_state_dict(tensors, training=False)
        return UnitPolicy(player, spec or trained_on, index=0, epsilon=epsilon), trained_on
    assert isinstance(config, OnlineConfig)
    learner = behaviour_learner(trained_on, config, seed, device)
    learner.load_state_dict(tensors, training=False)
    return LearnerPolicy(learner), trained_on
