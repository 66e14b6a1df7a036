"""Behaviour policies of known quality, trained once and kept: random, medium, expert.

As in OMAR (Pan et al. 2022) and D4RL (Fu et al. 2020): `expert` is the best checkpoint of online training,
`medium` the one whose return lies half-way between random and expert, and `medium-replay` everything that
training had seen until then.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offmarl import __version__
from offmarl.atomic import write_json
from offmarl.behaviour.checkpoint import load_policy_file, save_policy
from offmarl.behaviour.online import Checkpoint, OnlineConfig, train_online
from offmarl.behaviour.random import RandomPolicy
from offmarl.data.catalog import policies_folder
from offmarl.envs.base import Environment, EnvSpec, Policy
from offmarl.envs.registry import make
from offmarl.errors import DataError
from offmarl.evaluation.rollout import rollout
from offmarl.reporter import Reporter
from offmarl.stored_json import read_object
from offmarl.streams import stream_seed
from offmarl.training.acting import LearnerPolicy

QUALITIES = ("random", "medium-replay", "medium", "expert", "scripted")
TRAINED = ("medium-replay", "medium", "expert")
REFERENCE_EPISODES = 1_000  # over which the returns of random and expert play are measured
SLOW_REFERENCE_EPISODES = 128  # in environments that are stepped one by one in worker processes


@dataclass(frozen=True)
class TaskKey:
    """What an environment is made of, for making more of them."""

    env: str
    backend: str
    options: dict[str, Any]
    device: str

    def make(self, num_envs: int) -> Environment:
        """`num_envs` copies."""
        return make(self.env, num_envs, backend=self.backend, options=self.options, device=self.device)


@dataclass(frozen=True)
class TrainedBehaviour:
    """The outcome of online training on a task, in the cache."""

    folder: Path
    random_return: float
    expert_return: float
    medium_return: float
    medium_step: int
    expert_step: int

    def policy(self, quality: str, device: str) -> LearnerPolicy:
        """The `medium` or `expert` policy."""
        return load_policy_file(self.folder / f"{quality}.safetensors", device)[0]

    @property
    def references(self) -> dict[str, float]:
        """What normalised scores are measured against."""
        return {"random": self.random_return, "expert": self.expert_return}


def trained_behaviour(task: TaskKey, config: OnlineConfig, seed: int, reporter: Reporter) -> TrainedBehaviour:
    """Train on `task`, or take what the same training left in the cache. Raises `DataError` where that is damaged."""
    with task.make(config.num_envs) as env:
        folder = policies_folder() / task.env / _fingerprint(env.spec, config, seed)
        record = folder / "training.json"
        if record.exists():
            reporter.say(f"behaviour of {task.env}: trained before, {folder}")
        else:
            _train(task, env, config, seed, folder, reporter)
    stored = read_object(record, "trained behaviour", "record of online training")
    lacking = [name for name in _FIELDS if name not in stored]
    if lacking:
        raise DataError(f"{record} has no '{lacking[0]}': delete {folder} to train anew")
    return TrainedBehaviour(folder=folder, **{name: stored[name] for name in _FIELDS})


_FIELDS = ("random_return", "expert_return", "medium_return", "medium_step", "expert_step")


def _train(
    task: TaskKey, env: Environment, config: OnlineConfig, seed: int, folder: Path, reporter: Reporter
) -> None:
    folder.mkdir(parents=True, exist_ok=True)  # a disk that refuses is found out before the training
    with task.make(config.evaluation_episodes) as evaluation_env:
        random_return = random_reference(evaluation_env, seed)
        with reporter.bar(f"train behaviour ({task.env})") as progress:
            checkpoints = train_online(env, evaluation_env, config, seed, progress)
        expert = max(checkpoints, key=lambda checkpoint: checkpoint.episode_return)
        medium = half_way(checkpoints, random_return, expert)
        # The best of many noisy scores is biased upwards: the two that were chosen are measured afresh.
        save_policy(folder / "expert.safetensors", env.spec, config, seed, expert)
        save_policy(folder / "medium.safetensors", env.spec, config, seed, medium)
        returns = {
            quality: mean_return(
                evaluation_env, load_policy_file(folder / f"{quality}.safetensors", task.device)[0], seed
            )
            for quality in ("expert", "medium")
        }
    write_json(
        folder / "training.json",
        {
            "env": env.spec.model_dump(mode="json"),
            "config": vars(config) | {"hidden": list(config.hidden)},
            "seed": seed,
            "offmarl": __version__,
            "random_return": random_return,
            "expert_return": returns["expert"],
            "expert_step": expert.step,
            "medium_return": returns["medium"],
            "medium_step": medium.step,
            "curve": [[checkpoint.step, checkpoint.episode_return] for checkpoint in checkpoints],
        },
    )
    reporter.say(
        f"behaviour of {task.env}: random {random_return:.1f}, medium {returns['medium']:.1f} "
        f"(step {medium.step}), expert {returns['expert']:.1f} (step {expert.step})"
    )


def half_way(checkpoints: list[Checkpoint], random_return: float, expert: Checkpoint) -> Checkpoint:
    """The checkpoint before the expert whose return is closest to half-way from random to expert."""
    goal = (random_return + expert.episode_return) / 2
    earlier = [checkpoint for checkpoint in checkpoints if checkpoint.step <= expert.step]
    return min(earlier, key=lambda checkpoint: abs(checkpoint.episode_return - goal))


def random_reference(env: Environment, seed: int) -> float:
    """Mean return of uniform actions, per agent."""
    return mean_return(env, RandomPolicy(env.spec), seed)


def mean_return(env: Environment, policy: Policy, seed: int, episodes: int | None = None) -> float:
    """Mean return per agent over at least `episodes` episodes."""
    if episodes is None:
        episodes = REFERENCE_EPISODES if env.spec.backend == "offmarl" else SLOW_REFERENCE_EPISODES
    rounds = -(-episodes // env.num_envs)
    returns = [
        rollout(env, policy, stream_seed(seed, "reference", k)).mean_agent.mean() for k in range(rounds)
    ]
    return float(sum(returns)) / rounds


def _fingerprint(spec: EnvSpec, config: OnlineConfig, seed: int) -> str:
    """A short name for everything that the outcome of training depends on."""
    text = json.dumps([spec.model_dump(mode="json"), vars(config), seed, __version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
