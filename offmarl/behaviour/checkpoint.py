"""Behaviour policies in a file: one safetensors file that says which task and learner it belongs to."""

import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from offmarl.atomic import replacing
from offmarl.behaviour.online import Checkpoint, OnlineConfig, behaviour_learner
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError
from offmarl.settings import configure
from offmarl.training.acting import LearnerPolicy
from offmarl.training.checkpoint import read_tensors

FORMAT = "offmarl behaviour policy 1"


def save_policy(path: Path, spec: EnvSpec, config: OnlineConfig, seed: int, checkpoint: Checkpoint) -> None:
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
        save_file(checkpoint.tensors, str(temporary), metadata)


def load_policy_file(path: Path, device: torch.device | str = "cpu") -> tuple[LearnerPolicy, EnvSpec]:
    """The policy in `path` and the task it was trained on.

    Raises `DataError` for a file that is missing, damaged or no behaviour policy.
    """
    metadata, tensors = read_tensors(path, "behaviour policy", device)
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{path} is no behaviour policy: its format is {metadata.get('format')!r}, not {FORMAT!r}"
        )
    try:
        spec = EnvSpec.model_validate_json(metadata["env"])
    except ValidationError as error:
        raise DataError(
            f"{path}: the description of its task is damaged ({error.errors()[0]['msg']})"
        ) from error
    config = configure(OnlineConfig, json.loads(metadata["config"]), "behaviour")
    learner = behaviour_learner(spec, config, int(metadata["seed"]), device)
    learner.load_state_dict(tensors, training=False)
    return LearnerPolicy(learner), spec
