"""Training a mean-field learner online on rendered tasks: battles against itself, pursuits and gatherings as they are.

In a battle both armies learn with one network, and in a share of the games one of them is an old self: against
itself alone a learner forgets how to beat what it has not met for long.
Shapes: E copies, G groups of agents, N agents.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from offmarl.behaviour.online import OnStep
from offmarl.behaviour.players import ByChance, Learned, Player, joint_choice
from offmarl.behaviour.schedule import Schedule
from offmarl.behaviour.unit_replay import StateReplay
from offmarl.envs.base import Environment, EnvSpec, Frame, Step
from offmarl.envs.magent import describe
from offmarl.envs.magent_render import renderers
from offmarl.errors import OffmarlError, UsageError, unknown_name
from offmarl.learners.meanfield.base import MeanFieldLearner
from offmarl.learners.registry import LEARNERS, learner_class, make_learner
from offmarl.reporter import Progress
from offmarl.settings import Count, Natural, UpToOne, configure
from offmarl.streams import stream, stream_seed
from offmarl.training.memory import keep_freed_memory

CLONING = "bc"  # needs somebody to clone
# What departs from the algorithms' own settings, which are for logged data: online nothing has to be feared of choices
# that the data lack, and faster steps win battles of 25 against 25 after 900 of them.
ONLINE = {"alpha": 0.0, "learning_rate": 1e-3, "tau": 0.01}


@dataclass(frozen=True)
class SelfPlayConfig(Schedule):
    """Settings of self-play; `--set behaviour.KEY` takes those of the algorithm beside them.

    Measured in battles of 64 against 64.
    """

    algorithm: str = "cmfq"
    steps: Count = 1_000
    num_envs: Count = 4
    warm_up: Count = 50
    updates: Count = 2  # a step
    batch_size: Count = 128  # living agents of each kind
    capacity: Count = 20_000  # steps of a copy that are kept
    exploration_steps: Natural = 400
    checkpoint_every: Count = 250
    league: UpToOne = 0.5  # share of battles in which one side is an old self
    evaluation_episodes: Count = 2  # games of each snapshot with each opponent
    finalists: Count = 2  # snapshots that play more than uniform choices
    evaluation_exploration: UpToOne = 0.05  # two greedy nets play one game only
    learner: dict[str, Any] = field(default_factory=dict)  # what departs from the algorithm's own settings


def self_play_config(values: Mapping[str, Any]) -> SelfPlayConfig:
    """Settings of self-play and of its algorithm, in one table. Raises `UsageError` as `configure` does."""
    algorithms = [name for name, kinds in LEARNERS.items() if "rendered" in kinds and name != CLONING]
    algorithm = values.get("algorithm", SelfPlayConfig.algorithm)
    if algorithm not in algorithms:
        raise unknown_name("algorithm of behaviour", str(algorithm), algorithms)
    config_class = learner_class(algorithm, "rendered").config_class
    own = {setting.name for setting in fields(SelfPlayConfig)} - {"learner"}
    of_learner = {setting.name for setting in fields(config_class)} - own
    for name in values:
        if name not in own | of_learner:
            raise unknown_name("setting of behaviour", name, sorted(own | of_learner))
    learner = ONLINE | {name: value for name, value in values.items() if name in of_learner}
    configure(config_class, learner, "behaviour")
    mine = {name: value for name, value in values.items() if name in own}
    return configure(SelfPlayConfig, mine | {"learner": learner}, "behaviour")


def self_play_learner(
    spec: EnvSpec, config: SelfPlayConfig, seed: int, device: torch.device | str
) -> MeanFieldLearner:
    """The learner that plays."""
    learner = make_learner(config.algorithm, spec, config.learner, [seed], device)
    assert isinstance(learner, MeanFieldLearner), "self_play_config lets no other through"
    return learner


def training_spec(spec: EnvSpec) -> EnvSpec:
    """What is played to learn `spec`: a battle with both sides learning, other tasks as they are."""
    if spec.id != "magent_battle":
        return spec
    return describe(spec.id, {**spec.options, "background": "none"})


@dataclass(frozen=True)
class Snapshot:
    """A policy on the way: after how many steps, and the learner's tensors."""

    step: int
    tensors: dict[str, Tensor]


class League:
    """Who plays which side in E copies: the present self (0), or an old one (k) on one side of a battle."""

    def __init__(self, copies: int, groups: int, share: float, generator: torch.Generator) -> None:
        self.share, self._generator = share, generator
        self.old: list[Player] = []
        self.who = torch.zeros(copies, groups, dtype=torch.int64, device=generator.device)  # [E, G]

    def begin(self, starting: Tensor) -> None:
        """Draw the players of the copies where `starting` [E] is true."""
        copies, groups = self.who.shape
        draw = torch.rand(copies, 3, generator=self._generator, device=self.who.device)
        if not self.old or groups != 2:
            return
        opponent = 1 + (draw[:, 0] * len(self.old)).long().clamp(max=len(self.old) - 1)  # [E]
        opponent *= draw[:, 1] < self.share
        side = (draw[:, 2] < 0.5).long()  # [E]
        drawn = torch.zeros_like(self.who).scatter_(1, side.unsqueeze(1), opponent.unsqueeze(1))
        self.who = torch.where(starting.unsqueeze(1), drawn, self.who)


def train_self_play(
    env: Environment,
    config: SelfPlayConfig,
    seed: int,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    until: int | None = None,
) -> list[Snapshot]:
    """Train on `env`, a rendered task, and return a checkpoint every `checkpoint_every` steps.

    `on_step` sees every step of all copies, warm-up included; with `until` training stops after that step, and steps
    up to then are the same as in a full run. Raises `UsageError` for a capacity below one step, `OffmarlError` if
    training diverges.
    """
    spec, device = env.spec, env.device
    if config.capacity < env.num_envs:
        raise UsageError(
            f"behaviour.capacity={config.capacity}: expected at least {env.num_envs}, a step of all copies"
        )
    if device.type == "cpu":
        keep_freed_memory()
    known = list(renderers(spec).values())
    learner = self_play_learner(spec, config, seed, device)
    present = Learned(learner, config.exploration)
    replay = StateReplay(spec, config.capacity, device)
    kinds = {renderer.kind.name for renderer in known}
    share = config.league if len(kinds) == 1 else 0.0  # of unlike groups each is the other's opponent anyway
    sources = list(replay.groups.values())
    league = League(env.num_envs, len(known), share, stream(seed, "self-play", "league", device=device))
    acting = stream(seed, "self-play", "act", device=device)
    sampling = stream(seed, "self-play", "sample", device=device)
    snapshots: list[Snapshot] = []
    frame = env.reset(stream_seed(seed, "self-play", "reset"))
    league.begin(torch.ones(env.num_envs, dtype=torch.bool, device=device))
    last = config.steps if until is None else until
    for count in range(1, last + 1):
        present.epsilon = config.epsilon(count)
        players = [present if count > config.warm_up else ByChance(), *league.old]
        assert frame.state is not None
        action = joint_choice(players, league.who, frame.state, known, acting)
        step = env.step(action)
        replay.add(frame, action, step)
        league.begin(step.done)
        if on_step is not None:
            on_step(frame, action, step)
        frame = step.frame
        if count > config.warm_up:
            for _ in range(config.updates):
                metrics = learner.update(learner.sample(sources, config.batch_size, [sampling]))
        if count % config.checkpoint_every == 0 and count > config.warm_up:
            lost = [name for name, value in metrics.items() if not bool(value.isfinite().all())]
            if lost:
                raise OffmarlError(
                    f"self-play on {spec.id} diverged at step {count} ({lost[0]} is not finite): "
                    "lower behaviour.learning_rate"
                )
            snapshots.append(Snapshot(count, learner.state_dict()))
            if share:
                league.old.append(
                    Learned(revived(spec, config, seed, snapshots[-1], device), config.exploration)
                )
        if progress is not None:
            progress(count, last)
    return snapshots


def revived(
    spec: EnvSpec, config: SelfPlayConfig, seed: int, snapshot: Snapshot, device: torch.device | str
) -> MeanFieldLearner:
    """The learner as it was at a checkpoint, to act alone."""
    learner = self_play_learner(spec, config, seed, device)
    learner.load_state_dict(snapshot.tensors, training=False)
    return learner


def own_side(spec: EnvSpec, played: EnvSpec, on_step: OnStep) -> OnStep:
    """Show `on_step` of what was `played` the agents of `spec` alone: one side of a battle that both sides learn."""
    if spec.agents == played.agents:
        return on_step
    columns = torch.tensor([played.agents.index(agent) for agent in spec.agents])

    def narrowed(frame: Frame) -> Frame:
        assert frame.alive is not None
        return replace(
            frame, obs=frame.obs[:, columns], alive=frame.alive[:, columns], legal=None, position=None
        )

    def watch(frame: Frame, action: Tensor, step: Step) -> None:
        assert step.agent_reward is not None
        reward = step.agent_reward[:, columns]
        own = replace(
            step,
            frame=narrowed(step.frame),
            successor=narrowed(step.successor),
            agent_reward=reward,
            team_reward=reward.sum(1),
        )
        on_step(narrowed(frame), action[:, columns], own)

    return watch
