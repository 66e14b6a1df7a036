"""Playing whole episodes in batched environments and adding up what was earned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offmarl.envs.base import Environment, EnvSpec, Policy
from offmarl.envs.registry import describe, make
from offmarl.errors import UsageError
from offmarl.streams import stream, stream_seed


@dataclass
class EpisodeReturns:
    """What E copies earned in one episode each, undiscounted.

    The field reports the mean over the agents of an episode's summed reward (`mean_agent`); the team's sum
    is N times that.
    """

    team: Tensor  # [E] sum of the team reward
    agent: Tensor | None  # [E, N] sum of each agent's own reward, where the environment tells it
    length: Tensor  # [E] steps
    n_agents: int
    won: Tensor | None = None  # [E] bool: the episode was won, in tasks that can be won

    @property
    def mean_agent(self) -> Tensor:
        """[E] the team's return divided by the number of agents."""
        return self.team / self.n_agents


def task_of(
    spec: EnvSpec,
    copies: int,
    options: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Environment:
    """Make copies of the task that data came from, with its own options or others.

    Raises `UsageError` like `make`, and for a task that is known from its data alone.
    """
    if ":" not in spec.backend:  # else a module says what the id means
        try:
            describe(spec.id)
        except UsageError as error:
            raise UsageError(
                f"there is no simulator of {spec.id} here, so nothing can be played: `offmarl evaluate --offline` "
                "judges runs by their data"
            ) from error
    return make(
        spec.id,
        copies,
        backend=spec.backend,
        options=spec.options if options is None else options,
        device=device,
    )


@torch.no_grad()
def rollout(
    env: Environment,
    policy: Policy,
    seed: int,
    on_step: Callable[[], None] | None = None,
) -> EpisodeReturns:
    """Play one episode in every copy of `env`; copies that finish early wait for the others.

    The same seed gives the same initial states and the same draws of the policy.
    """
    generator = stream(seed, "rollout", "policy", device=env.device)
    frame = env.reset(stream_seed(seed, "rollout", "reset"))
    running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)  # [E]
    team = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)  # [E]
    agent = torch.zeros(env.num_envs, env.spec.n_agents, dtype=torch.float64, device=env.device)  # [E, N]
    length = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)  # [E]
    won: Tensor | None = None  # [E]
    policy.begin(running, generator)
    while running.any():
        step = env.step(policy.act(frame, generator))
        team += step.team_reward * running
        if step.agent_reward is not None:
            agent += step.agent_reward * running.unsqueeze(1)
        length += running
        if step.won is not None:
            victory = step.won & running
            won = victory if won is None else won | victory
        running &= ~step.done
        frame = step.frame
        if step.done.any():
            policy.begin(step.done, generator)
        if on_step is not None:
            on_step()
    return EpisodeReturns(team, agent if env.spec.has_agent_reward else None, length, env.spec.n_agents, won)
