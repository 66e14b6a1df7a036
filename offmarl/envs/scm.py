"""Synthetic tasks whose rewards have known causes: the yardstick for reward decomposition.

The state is drawn afresh every step, so nothing is to be learned but who was paid for what. Agent i is paid
for three state dimensions p, q, s and one action dimension a, with coefficients c of size 0.6 to 1.4 and
random sign:

    r_i = c0 · p · tanh(q) + 0.8 · c1 · sin(2 s) + 1.5 · c2 · a² + 0.8 · c3 · a · s

and, by case: **a** nothing more; **b1** 0.8 · (p · g + s · h) with two global dimensions; **b2** tanh(p + q)
times the first parent of the next agent; **c** a term of three global dimensions that everyone is paid,
**c2** with unequal weights; **d** as a, with a correlated state; **e** as a, with noise on the team's reward;
**nonlocal** parents that have nothing to do with who owns them.
Shapes: E copies, N agents, D state, A action dimensions of an agent.
"""

import math
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from offmarl.envs.base import Environment, EnvSpec, Frame, Step
from offmarl.errors import UsageError
from offmarl.streams import stream, stream_seed

_NOISE_SAMPLE = 65_536  # draws from which the noiseless team reward's standard deviation is taken


@dataclass(frozen=True)
class ScmOptions:
    """Options of the synthetic tasks."""

    agents: Annotated[int, Field(ge=2)] = 4
    own: Annotated[int, Field(ge=3)] = 6  # state dimensions that an agent owns
    global_dims: Annotated[int, Field(ge=3)] = 6  # state dimensions that nobody owns
    action_dims: Annotated[int, Field(ge=1)] = 2
    horizon: Annotated[int, Field(ge=1)] = 25
    structure_seed: int = 0  # which dimensions are causes, and the coefficients
    noise: Annotated[float, Field(ge=0)] = 0.0  # in standard deviations of the team's reward
    correlation: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of neighbours in a hidden order of the state


@dataclass(frozen=True)
class CorrelatedOptions(ScmOptions):
    """Options of scm_d."""

    correlation: Annotated[float, Field(ge=0, lt=1)] = 0.7


@dataclass(frozen=True)
class NoisyOptions(ScmOptions):
    """Options of scm_e."""

    noise: Annotated[float, Field(ge=0)] = 0.3


def options_of(env_id: str) -> type[ScmOptions]:
    """The options of a synthetic task, with its own defaults."""
    return {"scm_d": CorrelatedOptions, "scm_e": NoisyOptions}.get(env_id, ScmOptions)


class ScmEnvironment(Environment):
    """E copies of a synthetic task. Agents observe their own state and the global one.

    Noise is shared equally by the agents, so that their rewards add up to the team's.
    """

    def __init__(
        self,
        env_id: str,
        options: ScmOptions,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self._case = env_id.removeprefix("scm_")
        self._options = options
        self.num_envs = num_envs
        self.device = torch.device(device)
        self._dtype = dtype
        self._own_dims = options.agents * options.own
        self._state_dim = self._own_dims + options.global_dims
        self._draw_structure()
        self.spec = self._describe(env_id)
        if options.correlation:
            self._mixing = self._ar_factor(options.correlation)  # [D, D]
        self._generator = torch.Generator(self.device)
        self._noise = 0.0
        if options.noise:
            sample = stream(options.structure_seed, "scm", "noise", device=self.device)
            shape = (_NOISE_SAMPLE, options.agents, options.action_dims)
            action = 2 * torch.rand(shape, generator=sample, device=self.device, dtype=dtype) - 1
            team_reward = self.reward(self._draw_state(_NOISE_SAMPLE, sample), action).sum(1)
            self._noise = options.noise * float(team_reward.std())
        self._steps = 0  # taken in the running episode: all copies begin and end together
        self._state: Tensor | None = None

    def _draw_structure(self) -> None:
        """Draw which dimensions decide each agent's reward, and how much, from the structure's seed alone."""
        options, generator = self._options, stream(self._options.structure_seed, "scm", self._case)
        N, own = options.agents, options.own
        if self._case == "nonlocal":
            parents = torch.randperm(self._state_dim, generator=generator)[: 3 * N].view(N, 3)
            actions = torch.randperm(N * options.action_dims, generator=generator)[:N]
        else:
            chosen = torch.rand(N, own, generator=generator).argsort(1)[:, :3]
            parents = chosen + own * torch.arange(N).unsqueeze(1)
            chosen = torch.randint(options.action_dims, (N,), generator=generator)
            actions = chosen + options.action_dims * torch.arange(N)
        size = 0.6 + 0.8 * torch.rand(N, 4, generator=generator, dtype=torch.float64)
        sign = 2 * torch.randint(2, (N, 4), generator=generator) - 1
        globals_ = self._own_dims + torch.rand(N, options.global_dims, generator=generator).argsort(1)[:, :2]
        shares = np.random.default_rng(stream_seed(options.structure_seed, "scm", "shares")).dirichlet(
            [0.7] * N
        )

        self._parents = parents.to(self.device)  # [N, 3]
        self._action_parent = actions.to(self.device)  # [N]
        self._coefficients = (size * sign).to(self.device, self._dtype)  # [N, 4]
        self._global_parents = globals_.to(self.device)  # [N, 2]
        self._shares = N * torch.from_numpy(shares).to(self.device, self._dtype)  # [N], unequal
        self._order = torch.randperm(self._state_dim, generator=generator).to(self.device)

    def _ar_factor(self, correlation: float) -> Tensor:
        """Matrix that turns independent draws into a chain where neighbours have this correlation, [D, D]."""
        lag = torch.arange(self._state_dim).unsqueeze(1) - torch.arange(self._state_dim)
        factor = correlation ** lag.clamp_min(0).double() * (lag >= 0)
        factor[:, 1:] *= math.sqrt(1 - correlation**2)
        return factor.to(self.device, self._dtype)

    def _describe(self, env_id: str) -> EnvSpec:
        options = self._options
        agents = tuple(f"agent_{i}" for i in range(options.agents))
        state_names = tuple(f"{agent}.x{k}" for agent in agents for k in range(options.own))
        state_names += tuple(f"global.x{k}" for k in range(options.global_dims))
        actions = tuple(f"action_{k}" for k in range(options.action_dims))
        obs = tuple(f"x{k}" for k in range(options.own)) + state_names[self._own_dims :]
        owner = [i for i in range(options.agents) for _ in range(options.own)] + [-1] * options.global_dims
        action_names = [f"{agent}.{action}" for agent in agents for action in actions]
        causes = []
        for i in range(options.agents):
            parents = {*self._parents[i].tolist()}
            if self._case == "b1":
                parents |= {*self._global_parents[i].tolist()}
            if self._case == "b2":
                parents.add(int(self._parents[(i + 1) % options.agents, 0]))
            if self._case in ("c", "c2"):
                parents |= {self._own_dims + k for k in range(3)}
            causes.append(
                (*(state_names[k] for k in sorted(parents)), action_names[int(self._action_parent[i])])
            )
        return EnvSpec(
            id=env_id,
            options=asdict(options),
            agents=agents,
            groups=tuple((agent,) for agent in agents),  # each has causes of its own: nobody can share
            action_type="continuous",
            obs_names=(obs,) * options.agents,
            action_names=(actions,) * options.agents,
            state_names=state_names,
            state_owner=tuple(owner),
            horizon=options.horizon,
            causes=tuple(causes),
        )

    def reward(self, state: Tensor, action: Tensor) -> Tensor:
        """What each agent earns without noise, [E, N]: from the state [E, D] and the actions [E, N, A]."""
        p, q, s = state[:, self._parents].unbind(-1)  # [E, N] each
        a = action.flatten(1)[:, self._action_parent]
        c0, c1, c2, c3 = self._coefficients.unbind(1)
        reward = c0 * p * torch.tanh(q) + 0.8 * c1 * torch.sin(2 * s) + 1.5 * c2 * a**2 + 0.8 * c3 * a * s
        if self._case == "b1":
            g, h = state[:, self._global_parents].unbind(-1)
            reward = reward + 0.8 * (p * g + s * h)
        if self._case == "b2":
            reward = reward + torch.tanh(p + q) * p.roll(-1, dims=1)
        if self._case in ("c", "c2"):
            g, h, k = state[:, self._own_dims : self._own_dims + 3].unbind(-1)
            shared = (torch.sin(g) + 0.7 * h * k).unsqueeze(1)
            reward = reward + (shared * self._shares if self._case == "c2" else shared)
        return reward

    def reset(self, seed: int) -> Frame:
        """Start a new episode in every copy; the same seed gives the same episodes."""
        self._generator.manual_seed(stream_seed(seed, "scm", "states"))
        self._steps = 0
        self._state = self._draw_state(self.num_envs, self._generator)
        return self._look(self._state)

    def step(self, action: Tensor) -> Step:
        """Pay for the state and the joint action [E, N, A]; the next state is a fresh draw.

        Actions outside [-1, 1] are clipped. Raises `UsageError` before the first `reset`, or for another
        shape.
        """
        if self._state is None:
            raise UsageError("call reset before step")
        expected = (self.num_envs, self._options.agents, self._options.action_dims)
        if action.shape != expected:
            raise UsageError(f"{self.spec.id}: actions have shape {tuple(action.shape)}, expected {expected}")
        agent_reward = self.reward(self._state, action.to(self.device, self._dtype).clamp(-1, 1))
        if self._noise:
            noise = torch.randn(
                self.num_envs, 1, generator=self._generator, device=self.device, dtype=self._dtype
            )
            agent_reward = agent_reward + noise * (self._noise / self._options.agents)
        successor = self._state = self._draw_state(self.num_envs, self._generator)
        self._steps = (self._steps + 1) % self._options.horizon
        ended = self._steps == 0
        if ended:
            self._state = self._draw_state(self.num_envs, self._generator)
        seen = self._look(successor)
        return Step(
            frame=self._look(self._state) if ended else seen,
            successor=seen,
            team_reward=agent_reward.sum(1),
            agent_reward=agent_reward,
            terminated=torch.zeros(self.num_envs, dtype=torch.bool, device=self.device),
            truncated=torch.full((self.num_envs,), ended, device=self.device),
        )

    def _draw_state(self, copies: int, generator: torch.Generator) -> Tensor:
        """Standard normal dimensions [copies, D], correlated along a hidden order if the options say so."""
        drawn = torch.randn(
            copies, self._state_dim, generator=generator, device=self.device, dtype=self._dtype
        )
        if not self._options.correlation:
            return drawn
        state = torch.empty_like(drawn)
        state[:, self._order] = drawn @ self._mixing.t()
        return state

    def _look(self, state: Tensor) -> Frame:
        own = state[:, : self._own_dims].view(-1, self._options.agents, self._options.own)
        shared = state[:, None, self._own_dims :].expand(-1, self._options.agents, -1)
        return Frame(obs=torch.cat([own, shared], 2), state=state)
