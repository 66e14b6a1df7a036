"""Behaviour policies of known quality, trained once and kept: random, medium, expert.

As in OMAR (Pan et al. 2022) and D4RL (Fu et al. 2020): `expert` is the best checkpoint of online training,
`medium` the one whose return lies half-way between random and expert, and `medium-replay` everything that
training had seen until then.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from offmarl import __version__
from offmarl.atomic import write_json
from offmarl.behaviour.checkpoint import load_policy_file, save_policy
from offmarl.behaviour.online import Checkpoint, OnlineConfig, train_online
from offmarl.behaviour.panel import best, first_group_alone, medium, standings
from offmarl.behaviour.random import RandomPolicy
from offmarl.behaviour.schedule import Schedule
from offmarl.behaviour.self_play import SelfPlayConfig, train_self_play, training_spec
from offmarl.data.catalog import policies_folder
from offmarl.envs.base import Environment, EnvSpec, Policy
from offmarl.envs.magent import describe, make_magent
from offmarl.envs.magent_options import OPTIONS
from offmarl.envs.registry import make
from offmarl.errors import DataError
from offmarl.evaluation.rollout import rollout
from offmarl.reporter import Reporter
from offmarl.stored_json import read_object
from offmarl.streams import stream_seed

QUALITIES = ("random", "medium-replay", "medium", "expert", "scripted")
TRAINED = ("medium-replay", "medium", "expert")
REFERENCE_EPISODES = 1_000  # over which the returns of random and expert play are measured
SLOW_REFERENCE_EPISODES = 128  # in environments that are stepped one by one in worker processes
RENDERED_REFERENCE_EPISODES = 16  # where hundreds of agents look around in each step


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

    def make_blind(self, spec: EnvSpec, num_envs: int) -> Environment:
        """`num_envs` copies; of a rendered task without observations, for policies that render what they need."""
        if not spec.rendered:
            return self.make(num_envs)
        return make_magent(self.env, num_envs, self.options, self.device, views=False)

    def describe(self) -> EnvSpec:
        """What a copy is."""
        if self.env in OPTIONS and self.backend in ("offmarl", "magent"):  # known without starting a worker
            return describe(self.env, self.options)
        with self.make(1) as probe:
            return probe.spec


@dataclass(frozen=True)
class TrainedBehaviour:
    """The outcome of online training on a task, in the cache."""

    folder: Path
    random_return: float
    expert_return: float
    medium_return: float
    medium_step: int
    expert_step: int

    def policy(self, quality: str, spec: EnvSpec, device: str) -> Policy:
        """The `medium` or `expert` policy, to act in `spec`."""
        return load_policy_file(self.folder / f"{quality}.safetensors", device, spec)[0]

    @property
    def references(self) -> dict[str, float]:
        """What normalised scores are measured against."""
        return {"random": self.random_return, "expert": self.expert_return}


def trained_behaviour(task: TaskKey, config: Schedule, seed: int, reporter: Reporter) -> TrainedBehaviour:
    """Train on `task`, or take what the same training left in the cache. Raises `DataError` where that is damaged."""
    spec = task.describe()
    folder = policies_folder() / task.env / _fingerprint(spec, config, seed)
    record = folder / "training.json"
    if record.exists():
        reporter.say(f"behaviour of {task.env}: trained before, {folder}")
    else:
        folder.mkdir(parents=True, exist_ok=True)  # a disk that refuses is found out before the training
        _train(task, spec, config, seed, folder, reporter)
    stored = read_object(record, "trained behaviour", "record of online training")
    lacking = [name for name in _FIELDS if name not in stored]
    if lacking:
        raise DataError(f"{record} has no '{lacking[0]}': delete {folder} to train anew")
    trained = TrainedBehaviour(folder=folder, **{name: stored[name] for name in _FIELDS})
    if trained.expert_return <= trained.random_return:
        reporter.say("expert earns no more than random choices: train longer, --set behaviour.steps=...")
    elif trained.expert_step == trained.medium_step:
        reporter.say(
            f"medium and expert are the same policy, of step {trained.expert_step}: nothing half-way was seen; "
            "--set behaviour.checkpoint_every=... looks more often"
        )
    return trained


_FIELDS = ("random_return", "expert_return", "medium_return", "medium_step", "expert_step")


@dataclass(frozen=True)
class Curve:
    """What online training went through, and what is kept of it."""

    expert: Checkpoint
    medium: Checkpoint
    spec: EnvSpec  # of what was played
    table: list[list[float]] | list[dict[str, Any]]  # for training.json


def _train(
    task: TaskKey, spec: EnvSpec, config: Schedule, seed: int, folder: Path, reporter: Reporter
) -> None:
    copies = RENDERED_REFERENCE_EPISODES if spec.rendered else config.evaluation_episodes
    with task.make_blind(spec, copies) as evaluation_env:
        random_return = random_reference(evaluation_env, seed)
        if isinstance(config, SelfPlayConfig):
            curve = _play_against_itself(task, spec, config, seed, random_return, reporter)
        else:
            assert isinstance(config, OnlineConfig)
            curve = _learn_online(task, evaluation_env, config, seed, random_return, reporter)
        chosen = {"expert": curve.expert, "medium": curve.medium}
        returns = {}
        for quality, checkpoint in chosen.items():
            path = folder / f"{quality}.safetensors"
            save_policy(path, curve.spec, config, seed, checkpoint)
            # The best of many noisy scores is biased upwards: the two that were chosen are measured afresh.
            epsilon = config.evaluation_exploration if isinstance(config, SelfPlayConfig) else 0.0
            policy, _ = load_policy_file(path, task.device, spec, epsilon)
            returns[quality] = mean_return(evaluation_env, policy, seed)
    expert_step, medium_step = curve.expert.step, curve.medium.step
    write_json(
        folder / "training.json",
        {
            "env": spec.model_dump(mode="json"),
            "config": vars(config),
            "seed": seed,
            "offmarl": __version__,
            "random_return": random_return,
            "expert_return": returns["expert"],
            "expert_step": expert_step,
            "medium_return": returns["medium"],
            "medium_step": medium_step,
            "curve": curve.table,
        },
    )
    reporter.say(
        f"behaviour of {task.env}: random {random_return:.1f}, medium {returns['medium']:.1f} "
        f"(step {medium_step}), expert {returns['expert']:.1f} (step {expert_step})"
    )


def _learn_online(
    task: TaskKey,
    evaluation_env: Environment,
    config: OnlineConfig,
    seed: int,
    random_return: float,
    reporter: Reporter,
) -> Curve:
    with task.make(config.num_envs) as env, reporter.bar(f"train behaviour ({task.env})") as progress:
        checkpoints = train_online(env, evaluation_env, config, seed, progress)
    expert = max(checkpoints, key=lambda checkpoint: checkpoint.episode_return)
    table = [[checkpoint.step, checkpoint.episode_return] for checkpoint in checkpoints]
    return Curve(expert, half_way(checkpoints, random_return, expert), env.spec, table)


def _play_against_itself(
    task: TaskKey,
    spec: EnvSpec,
    config: SelfPlayConfig,
    seed: int,
    random_return: float,
    reporter: Reporter,
) -> Curve:
    with (
        self_play_copies(spec, config, task.device) as env,
        reporter.bar(f"train behaviour ({task.env}, {config.algorithm})") as progress,
    ):
        snapshots = train_self_play(env, config, seed, progress)
    if spec.id != "magent_battle" and (alone := first_group_alone(spec)) != spec:
        # Snapshots are scored by what the first group earns: so is the random play that medium is half-way from.
        of_first = replace(task, options=alone.options)
        with of_first.make_blind(alone, RENDERED_REFERENCE_EPISODES) as hunt:
            random_return = random_reference(hunt, seed)
    with reporter.bar(f"choose among {len(snapshots)} snapshots") as progress:
        table = standings(spec, config, seed, snapshots, task.device, progress)
    checkpoints = [
        Checkpoint(one.step, standing.episode_return, one.tensors)
        for one, standing in zip(snapshots, table, strict=True)
    ]
    expert, half = checkpoints[best(table)], checkpoints[medium(table, random_return)]
    return Curve(expert, half, env.spec, [asdict(standing) for standing in table])


def self_play_copies(spec: EnvSpec, config: SelfPlayConfig, device: str) -> Environment:
    """Where self-play for `spec` learns."""
    played = training_spec(spec)
    return make_magent(played.id, config.num_envs, played.options, device, views=False)


def half_way(checkpoints: list[Checkpoint], random_return: float, expert: Checkpoint) -> Checkpoint:
    """The checkpoint before the expert whose return is closest to half-way from random to expert."""
    goal = (random_return + expert.episode_return) / 2
    earlier = [checkpoint for checkpoint in checkpoints if checkpoint.step <= expert.step]
    return min(earlier, key=lambda checkpoint: abs(checkpoint.episode_return - goal))


def random_reference(env: Environment, seed: int) -> float:
    """Mean return of uniform actions, per agent."""
    return mean_return(env, RandomPolicy(env.spec), seed)


def reference_episodes(spec: EnvSpec) -> int:
    """How many episodes the returns of a task are measured over."""
    if spec.rendered:
        return RENDERED_REFERENCE_EPISODES
    return REFERENCE_EPISODES if spec.backend == "offmarl" else SLOW_REFERENCE_EPISODES


def mean_return(env: Environment, policy: Policy, seed: int, episodes: int | None = None) -> float:
    """Mean return per agent over at least `episodes` episodes."""
    if episodes is None:
        episodes = reference_episodes(env.spec)
    rounds = -(-episodes // env.num_envs)
    returns = [
        rollout(env, policy, stream_seed(seed, "reference", k)).mean_agent.mean() for k in range(rounds)
    ]
    return float(sum(returns)) / rounds


def _fingerprint(spec: EnvSpec, config: Schedule, seed: int) -> str:
    """A short name for everything that the outcome of training depends on."""
    text = json.dumps([spec.model_dump(mode="json"), vars(config), seed, __version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
