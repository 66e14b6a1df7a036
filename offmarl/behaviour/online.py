"""Training behaviour policies online, in batched copies, with the project's own learners.

One network shared by the agents, a critic on each agent's own observation and action, one update for every
step of all copies together. Measured on the papers' spread task (classic rules, 3 agents): above the return
of the published expert data (516.8) in half a minute of one core.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.behaviour.random import RandomPolicy
from offmarl.behaviour.replay import ReplayBuffer
from offmarl.behaviour.schedule import Schedule
from offmarl.behaviour.wrappers import NoisyPolicy
from offmarl.envs.base import Environment, EnvSpec, Frame, Step
from offmarl.errors import OffmarlError, UsageError
from offmarl.evaluation.rollout import rollout
from offmarl.learners.base import ObservingLearner
from offmarl.learners.mixers import MixerKind
from offmarl.learners.registry import make_learner
from offmarl.reporter import Progress
from offmarl.settings import Count, Discount, Fraction, Hidden, NonNegative, Positive
from offmarl.streams import stream, stream_seed
from offmarl.training.acting import LearnerPolicy
from offmarl.training.memory import keep_freed_memory

# What one step of all copies produced: the frame acted on, the joint action, what came of it.
OnStep = Callable[[Frame, Tensor, Step], None]


@dataclass(frozen=True)
class OnlineConfig(Schedule):
    """Settings of online training. Values were measured on the papers' spread task unless another source is named.

    There is one update a step; the warm-up also scales the rewards. Learning jumps within 200 steps, so checkpoints
    are many.
    """

    noise: NonNegative = 0.1  # standard deviation of Gaussian exploration; TD3 (Fujimoto et al. 2018)
    batch_rows: Count = 1_024  # agents' transitions in a batch, of all agents together
    capacity: Count = 1_000_000  # agents' transitions kept
    hidden: Hidden = (64, 64)
    learning_rate: Positive = 3e-3
    gamma: Discount = 0.95  # OMAR (Pan et al. 2022), horizon 25
    tau: Fraction = 0.01  # OMAR
    policy_delay: Count = 2  # critic updates per policy update; TD3; 1 learns faster at first and ends lower
    reward_sd: Positive = 0.3  # the standard deviation that rewards are scaled to
    action_penalty: NonNegative = 1e-3  # OMAR's code
    share: bool = True  # one network for all agents: learns faster a second than one for each
    mixer: MixerKind | None = (
        "qmix"  # of choices, where the team has a state or one reward; null: independent agents
    )
    normalise_observations: bool = False  # to the moments of the warm-up


@dataclass(frozen=True)
class Checkpoint:
    """A policy on the way: after how many steps, how good, and the learner's tensors."""

    step: int
    episode_return: float  # greedy, mean over agents and episodes
    tensors: dict[str, Tensor]


def behaviour_learner(
    spec: EnvSpec, config: OnlineConfig, seed: int, device: torch.device | str
) -> ObservingLearner:
    """TD3 for continuous actions, for choices QMIX or independent double Q-learning.

    Agents of a task share a network.
    """
    values = {
        "hidden": config.hidden,
        "learning_rate": config.learning_rate,
        "share": config.share,
        "gamma": config.gamma,
        "tau": config.tau,
        "normalise_observations": config.normalise_observations,
        "reward_sd": config.reward_sd,
    }
    if not spec.discrete:
        name = "td3bc"
        values |= {
            "bc_weight": 0.0,
            "normalise_q": False,
            "action_penalty": config.action_penalty,
            "policy_delay": config.policy_delay,
        }
    elif config.mixer is None or not (spec.state_dim or spec.shared_reward):
        name, values = "cql", values | {"alpha": 0.0, "trunk": "mlp"}
    else:
        name, values = "qmix_cql", values | {"alpha": 0.0, "trunk": "mlp", "mixer": config.mixer}
    learner = make_learner(name, spec, values, [seed], device)
    assert isinstance(learner, ObservingLearner), "all three observe"
    return learner


def train_online(
    env: Environment,
    evaluation_env: Environment,
    config: OnlineConfig,
    seed: int,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    until: int | None = None,
) -> list[Checkpoint]:
    """Train on `env` and return a checkpoint every `checkpoint_every` steps, scored in `evaluation_env`.

    `on_step` sees every step of all copies, warm-up included; with `until` training stops after that step
    and, since nobody will choose among the checkpoints, none is scored or kept. Steps up to then are
    the same as in a full run. Raises `UsageError` for a capacity below one step, `OffmarlError` if training diverges.
    """
    spec, device = env.spec, env.device
    least = env.num_envs * spec.n_agents
    if config.capacity < least:
        raise UsageError(
            f"behaviour.capacity={config.capacity}: expected at least {least}, a step of {env.num_envs} copies with "
            f"{spec.n_agents} agents"
        )
    if device.type == "cpu":
        keep_freed_memory()
    learner = behaviour_learner(spec, config, seed, device)
    explorer = NoisyPolicy(LearnerPolicy(learner), spec, config.noise)
    uniform = RandomPolicy(spec)
    buffer = ReplayBuffer(spec, config.capacity // spec.n_agents, device)
    batch_size = max(config.batch_rows // spec.n_agents, 1)
    acting, sampling = (
        stream(seed, "online", "act", device=device),
        stream(seed, "online", "sample", device=device),
    )
    checkpoints: list[Checkpoint] = []
    frame = env.reset(stream_seed(seed, "online", "reset"))
    last = config.steps if until is None else until
    for count in range(1, last + 1):
        policy = uniform if count <= config.warm_up else explorer
        if spec.discrete:
            explorer.noise = config.epsilon(count)
        action = policy.act(frame, acting)
        step = env.step(action)
        buffer.add(frame, action, step, individual_reward(step, spec))
        if on_step is not None:
            on_step(frame, action, step)
        frame = step.frame
        if count == config.warm_up:
            learner.observe(buffer.statistics())
        if count > config.warm_up:
            learner.update(buffer.sample(batch_size, sampling))
        if until is None and count % config.checkpoint_every == 0 and count > config.warm_up:
            returns = rollout(evaluation_env, LearnerPolicy(learner), stream_seed(seed, "online", "evaluate"))
            score = float(returns.mean_agent.mean())
            if score != score:
                raise OffmarlError(
                    f"online training on {spec.id} diverged at step {count}: "
                    f"lower behaviour.learning_rate (now {config.learning_rate})"
                )
            checkpoints.append(Checkpoint(count, score, learner.state_dict()))
        if progress is not None:
            progress(count, last)
    return checkpoints


def individual_reward(step: Step, spec: EnvSpec) -> Tensor:
    """[E, N]: each agent's own reward, or an equal share of the team's where only that is known."""
    if step.agent_reward is not None:
        return step.agent_reward
    return (step.team_reward / spec.n_agents).unsqueeze(1).expand(-1, spec.n_agents)
