"""Transitions straight from an environment, without files."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from offmarl.credit.base import Credit
from offmarl.credit.diagnosis import agreement_with_truth
from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec, Frame
from offmarl.envs.registry import make
from offmarl.streams import stream

# A fraction of the real effort, enough for 12,000 transitions of three agents.
QUICK = {
    "structure_steps": 1_000,
    "refit_steps": 300,
    "pruning_factors": (),
    "width": 32,
    "choice_steps": 200,
}
HASTY = QUICK | {"structure_steps": 120, "refit_steps": 60, "choice_steps": 20}


def record(
    env_id: str,
    transitions: int,
    act: Callable[[EnvSpec, Frame, torch.Generator, int], Tensor] | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
) -> tuple[Transitions, Tensor]:
    """Play whole episodes of equal length in parallel: the table, and the true rewards [R, N]."""
    episodes = transitions // make(env_id, options=options).spec.horizon
    env = make(env_id, num_envs=episodes, options=options)
    spec, generator = env.spec, stream(seed, "record")
    frame = env.reset(seed)
    columns: dict[str, list[Tensor]] = {}

    def note(**values: Tensor | None) -> None:
        for name, value in values.items():
            if value is not None:
                columns.setdefault(name, []).append(value.float())

    for step in range(spec.horizon):
        action = uniform(spec, frame, generator) if act is None else act(spec, frame, generator, step)
        outcome = env.step(action)
        note(obs=frame.obs, state=frame.state, action=action)
        note(team_reward=outcome.team_reward, agent_reward=outcome.agent_reward)
        note(terminated=outcome.terminated, truncated=outcome.truncated)
        last, frame = outcome.successor, outcome.frame
    note(obs=last.obs, state=last.state)
    for name in ("action", "team_reward", "agent_reward", "terminated", "truncated"):
        columns[name].append(torch.zeros_like(columns[name][0]))
    arrays = {name: torch.stack(values, 1).flatten(0, 1) for name, values in columns.items()}
    truth = arrays.pop("agent_reward")
    starts = torch.arange(episodes + 1) * (spec.horizon + 1)
    return Transitions.from_arrays(spec, arrays, starts), truth


def uniform(spec: EnvSpec, frame: Frame, generator: torch.Generator) -> Tensor:
    """Uniform continuous actions."""
    return torch.rand(len(frame.obs), spec.n_agents, spec.action_dim, generator=generator) * 2 - 1


def agreement(credit: Credit, transitions: Transitions, truth: Tensor) -> dict[str, float | None]:
    """How the credit agrees with the true rewards [R, N] and causes, on the rows that were held out."""
    rows = credit.heldout_rows
    return agreement_with_truth(
        credit.reward[rows],
        truth[rows],
        transitions.column("team_reward")[rows],
        credit.masks,
        credit.input_names,
        transitions.spec.causes,
        equal=credit.fallback,
    )


class NoisyChase:
    """Every team steers towards what one observation names, some teams precisely, a third of them at random."""

    def __init__(self, target: str, gain: float, damping: float) -> None:
        self.target, self.gain, self.damping = target, gain, damping

    def __call__(self, spec: EnvSpec, frame: Frame, generator: torch.Generator, step: int) -> Tensor:
        names, teams = spec.obs_names[0], len(frame.obs)
        if step == 0:
            self.random = torch.rand(teams, 1, 1, generator=generator) < 1 / 3
            self.noise = 0.1 + 0.9 * torch.rand(teams, 1, 1, generator=generator)
        place = frame.obs[..., [names.index(f"{self.target}.relative_{axis}") for axis in "xy"]]
        velocity = frame.obs[..., [names.index(f"velocity_{axis}") for axis in "xy"]]
        wanted = (self.gain * place - self.damping * velocity).clamp(-1, 1)
        noise = self.noise * torch.randn(wanted.shape, generator=generator)
        return torch.where(self.random, uniform(spec, frame, generator), (wanted + noise).clamp(-1, 1))


def table(
    agents: int,
    reward: Callable[[Tensor, Tensor], Tensor],
    episodes: int = 60,
    horizon: int = 20,
    order: Sequence[int] | None = None,
    variables: int = 2,
) -> tuple[Transitions, Tensor]:
    """Agents a0, a1, ... with normal variables x0, x1, ..., one action u and `reward(obs, action)` [R, N].

    The table and the true rewards; the same with the agents in another `order`.
    """
    names = tuple(f"a{agent}" for agent in range(agents))
    spec = EnvSpec(
        id="table",
        agents=names,
        groups=(names,),
        action_type="continuous",
        obs_names=(tuple(f"x{k}" for k in range(variables)),) * agents,
        action_names=(("u",),) * agents,
        horizon=horizon,
        has_agent_reward=False,
    )
    rows, generator = episodes * (horizon + 1), stream(0, "table")
    obs = torch.randn(rows, agents, variables, generator=generator)
    action = 2 * torch.rand(rows, agents, 1, generator=generator) - 1
    step = torch.arange(rows) % (horizon + 1)
    truth = reward(obs, action) * (step < horizon)[:, None]
    places = list(order or range(agents))
    arrays = {"obs": obs[:, places], "action": action[:, places], "team_reward": truth.sum(1)}
    arrays |= {"terminated": torch.zeros(rows), "truncated": (step == horizon - 1).float()}
    return Transitions.from_arrays(spec, arrays, torch.arange(episodes + 1) * (horizon + 1)), truth[:, places]
