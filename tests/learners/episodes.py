"""Tasks of choices that last several steps, with known optima."""

import torch
from torch import Tensor

from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.learners.registry import make_learner
from offmarl.streams import stream


def spec(
    agents: int = 2, obs: int = 3, choices: tuple[int, ...] = (2, 2), state: int = 0, horizon: int = 4
) -> EnvSpec:
    names = tuple(f"agent_{index}" for index in range(agents))
    return EnvSpec(
        id="episodes",
        agents=names,
        groups=(names,),
        action_type="discrete",
        obs_names=(tuple(f"o{k}" for k in range(obs)),) * agents,
        action_names=tuple(tuple(f"u{k}" for k in range(width)) for width in choices),
        state_names=tuple(f"s{k}" for k in range(state)),
        horizon=horizon,
    )


def battle(episodes: int = 60, longest: int = 6, terminal: bool = True) -> Transitions:
    """Random episodes of 1 to `longest` steps: 3 agents of 4 choices, some illegal, some agents dead."""
    g = stream(0, "battle")
    task = spec(3, 5, (4, 4, 4), state=6, horizon=longest)
    length = torch.randint(1, longest + 1, (episodes,), generator=g)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), (length + 1).cumsum(0)])
    rows = int(start[-1])
    legal = torch.rand(rows, 3, 4, generator=g) < 0.6
    legal[..., 0] = True
    action = (torch.rand(rows, 3, 4, generator=g) * legal).argmax(-1)
    alive = torch.rand(rows, 3, generator=g) < 0.8
    last = torch.zeros(rows)
    last[start[1:] - 2] = 1
    ends = (torch.rand(rows, generator=g) < 0.5).float()
    final = torch.ones(rows)
    final[start[1:] - 1] = 0
    arrays = {
        "obs": torch.randn(rows, 3, 5, generator=g),
        "state": torch.randn(rows, 6, generator=g),
        "action": action.float() * final[:, None],
        "legal": legal.float(),
        "alive": alive.float(),
        "reward": torch.randn(rows, 3, generator=g) * final[:, None],
        "team_reward": torch.randn(rows, generator=g) * final,
        "terminated": last * ends * terminal,
        "truncated": last * (1 - ends * terminal),
    }
    return Transitions.from_arrays(task, arrays, start)


def whole(
    task: EnvSpec, obs: Tensor, action: Tensor, reward: Tensor, state: Tensor | None = None
) -> Transitions:
    """Episodes of T steps that terminate: obs [E, T + 1, N, O], action [E, T, N], team reward [E, T]."""
    E, T, N = action.shape
    ended = torch.zeros(E, T + 1)
    ended[:, -2] = 1
    arrays = {
        "obs": obs.flatten(0, 1),
        "action": torch.cat([action.float(), torch.zeros(E, 1, N)], 1).flatten(0, 1),
        "team_reward": torch.cat([reward, torch.zeros(E, 1)], 1).flatten(),
        "terminated": ended.flatten(),
        "truncated": torch.zeros(E * (T + 1)),
    }
    if state is not None:
        arrays["state"] = state.flatten(0, 1)
    return Transitions.from_arrays(task, arrays, torch.arange(0, E * (T + 1) + 1, T + 1))


def recall(episodes: int = 1_000, steps: int = 3, skilled: bool = False) -> Transitions:
    """A cue is seen at first; the last choice is worth 1 if it is the cue. Played at random, or well."""
    g = stream(0, "recall")
    cue = torch.randint(2, (episodes, 2), generator=g)
    obs = torch.zeros(episodes, steps + 1, 2, 3)
    obs[:, 0, :, 0] = 2.0 * cue - 1
    obs[..., 1] = torch.arange(steps + 1).view(1, -1, 1) / steps
    action = torch.randint(2, (episodes, steps, 2), generator=g)
    if skilled:
        action[:, -1] = cue
    reward = torch.zeros(episodes, steps)
    reward[:, -1] = (action[:, -1] == cue).float().sum(1)
    return whole(spec(2, 3, (2, 2), horizon=steps), obs, action, reward)


def two_step(episodes: int = 3_000) -> Transitions:
    """The two-step game of QMIX (Rashid et al. 2018, section 5): the first agent chooses which game is played next.

    One pays 7 whatever is done, the other [[0, 1], [1, 8]]. Played at random. The optimum is 8.
    """
    g = stream(0, "two steps")
    action = torch.randint(2, (episodes, 2, 2), generator=g)
    second = 1 + action[:, 0, 0]  # which state comes
    state = torch.zeros(episodes, 3, 3)
    state[:, 0, 0] = 1
    state[torch.arange(episodes), 1, second] = 1
    pay = torch.tensor([[0.0, 1.0], [1.0, 8.0]])[action[:, 1, 0], action[:, 1, 1]]
    reward = torch.stack([torch.zeros(episodes), torch.where(second == 1, 7.0, pay)], 1)
    obs = state.unsqueeze(2).expand(-1, -1, 2, -1).contiguous()
    return whole(spec(2, 3, (2, 2), state=3, horizon=2), obs, action, reward, state)


def learner_of(name, transitions, seeds=(0,), **values):
    """A small learner for `transitions`."""
    return make_learner(name, transitions.spec, {"hidden": (8, 8), **values}, seeds)


def batch_of(learner, transitions, size=16):
    """What `learner` is taught with at a time."""
    return learner.sample(transitions, size, [stream(seed, "sample") for seed in learner.seeds])
