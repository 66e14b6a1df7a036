"""One-step tasks whose best action is known."""

import torch
from torch import Tensor

from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Learner
from offmarl.learners.registry import make_learner
from offmarl.streams import stream

EPISODES = 4_000


def spec(
    action_type: str = "continuous",
    agents: int = 2,
    obs: int = 3,
    actions: tuple[int, ...] = (1, 1),
    groups: tuple[tuple[str, ...], ...] | None = None,
) -> EnvSpec:
    names = tuple(f"agent_{index}" for index in range(agents))
    return EnvSpec(
        id="bandit",
        agents=names,
        groups=groups or (names,),
        action_type=action_type,
        obs_names=(tuple(f"o{k}" for k in range(obs)),) * agents,
        action_names=tuple(tuple(f"u{k}" for k in range(width)) for width in actions),
        horizon=1,
    )


def one_step(task: EnvSpec, obs: Tensor, action: Tensor, reward: Tensor, **others: Tensor) -> Transitions:
    """Episodes of one step, each of which terminates."""
    episodes = len(obs)

    def rows(values: Tensor) -> Tensor:
        return torch.stack([values, torch.zeros_like(values)], 1).flatten(0, 1)

    arrays = {"obs": obs, "action": action, "reward": reward, "team_reward": reward.sum(1)}
    arrays |= {"terminated": torch.ones(episodes), "truncated": torch.zeros(episodes), **others}
    table = {name: rows(values) for name, values in arrays.items()}
    return Transitions.from_arrays(task, table, torch.arange(0, 2 * episodes + 1, 2))


def continuous() -> Transitions:
    """Agent i should do 0.8 o_i0; the behaviour does 0.3 o_i0 with noise."""
    g = stream(0, "bandit")
    obs = torch.rand(EPISODES, 2, 3, generator=g) * 2 - 1
    noise = 0.4 * torch.randn(EPISODES, 2, 1, generator=g)
    action = (behaviour(obs) + noise).clamp(-1, 1)
    return one_step(spec(), obs, action, continuous_reward(obs, action))


def behaviour(obs: Tensor) -> Tensor:
    return 0.3 * obs[..., :1]


def continuous_reward(obs: Tensor, action: Tensor) -> Tensor:
    return 3 - (action - 0.8 * obs[..., :1]).square().sum(-1)


def discrete() -> Transitions:
    """Choice 2 is best where o_i0 > 0, else choice 0; the behaviour prefers 1; choice 3 is illegal."""
    g = stream(1, "bandit")
    task = spec("discrete", actions=(4, 4))
    obs = torch.rand(EPISODES, 2, 3, generator=g) * 2 - 1
    legal = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(EPISODES, 2, 4)
    action = torch.tensor([1, 1, 0, 2])[torch.randint(4, (EPISODES, 2), generator=g)]
    return one_step(task, obs, action.float(), discrete_reward(obs, action), legal=legal)


def discrete_reward(obs: Tensor, action: Tensor) -> Tensor:
    return (action == best_choice(obs)).float()


def best_choice(obs: Tensor) -> Tensor:
    return torch.where(obs[..., 0] > 0, 2, 0)


def train(learner: Learner, transitions: Transitions, steps: int, batch_size: int = 256) -> Learner:
    learner.observe(transitions.statistics())
    learner.see(transitions)
    generators = [stream(seed, "sample") for seed in learner.seeds]
    for _ in range(steps):
        learner.update(learner.sample(transitions, batch_size, generators))
    return learner


def trained(
    name: str, transitions: Transitions, steps: int = 300, seeds: tuple[int, ...] = (0,), **values: object
):
    settings = {"hidden": (32, 32), **values}
    return train(make_learner(name, transitions.spec, settings, seeds), transitions, steps)
