"""A small batched task with episodes of different lengths, and a policy for it."""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from offmarl.data.collect import collect
from offmarl.data.writer import Writer
from offmarl.envs.base import Environment, EnvSpec, Frame, Step
from offmarl.errors import OffmarlError
from offmarl.streams import stream

N_AGENTS = 3


def toy_spec(discrete: bool = False, horizon: int = 12) -> EnvSpec:
    agents = tuple(f"agent_{i}" for i in range(N_AGENTS))
    return EnvSpec(
        id="toy",
        options={"discrete": discrete, "horizon": horizon},
        agents=agents,
        groups=(agents,),
        action_type="discrete" if discrete else "continuous",
        obs_names=(("x", "y", "vx", "t"),) * N_AGENTS,
        action_names=(("left", "stay", "right"),) * N_AGENTS if discrete else (("ax", "ay"),) * N_AGENTS,
        state_names=("clock", "mean_x"),
        horizon=horizon,
        versions={"toy": "1"},
    )


class Toy(Environment):
    """Points that drift; a copy terminates when agent 0 leaves a box, and is truncated at the horizon."""

    def __init__(
        self, num_envs: int = 4, discrete: bool = False, horizon: int = 12, pause: float = 0.0
    ) -> None:
        self.spec = toy_spec(discrete, horizon)
        self.num_envs, self.device, self.pause = num_envs, torch.device("cpu"), pause

    def reset(self, seed: int) -> Frame:
        self._generator = stream(seed, "toy")
        self._x = self._start(self.num_envs)
        self._clock = torch.zeros(self.num_envs)
        return self._frame()

    def step(self, action: Tensor) -> Step:
        time.sleep(self.pause)
        if self.spec.discrete:
            assert self._legal().gather(2, action[..., None]).all()
            move = action.float() - 1
        else:
            assert action.abs().max() <= 1
            move = action[..., 0]
        self._x = self._x + 0.3 * move
        self._clock = self._clock + 1
        agent_reward = -self._x.abs() + 0.1 * torch.arange(N_AGENTS)
        terminated = self._x[:, 0].abs() > 1
        truncated = (self._clock >= self.spec.horizon) & ~terminated
        successor, done = self._frame(), terminated | truncated
        self._x = torch.where(done[:, None], self._start(self.num_envs), self._x)
        self._clock = torch.where(done, torch.zeros(()), self._clock)
        return Step(self._frame(), successor, agent_reward.sum(1), agent_reward, terminated, truncated)

    def _start(self, copies: int) -> Tensor:
        return torch.rand(copies, N_AGENTS, generator=self._generator) - 0.5

    def _legal(self) -> Tensor:
        """Nobody may go further right than 0.8."""
        legal = torch.ones(self.num_envs, N_AGENTS, 3, dtype=torch.bool)
        legal[..., 2] = self._x <= 0.8
        return legal

    def _frame(self) -> Frame:
        clock = self._clock[:, None].expand(-1, N_AGENTS)
        obs = torch.stack([self._x, self._x.square(), self._x.sin(), clock], dim=-1)
        state = torch.stack([self._clock, self._x.mean(1)], dim=-1)
        position = torch.stack([self._x, self._x], dim=-1)
        return Frame(obs, state, self._legal() if self.spec.discrete else None, self._x < 0.9, position)


class ToyPolicy:
    """Random drifts; one agent an episode is lazy, which is noted beside the data."""

    def __init__(self, discrete: bool = False) -> None:
        self.discrete = discrete
        self.lazy = torch.zeros(0, N_AGENTS, dtype=torch.bool)

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        drawn = torch.randint(N_AGENTS, starting.shape, generator=generator)
        fresh = torch.nn.functional.one_hot(drawn, N_AGENTS).bool()
        self.lazy = (
            fresh if len(self.lazy) != len(starting) else torch.where(starting[:, None], fresh, self.lazy)
        )

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        if self.discrete:
            drawn = (
                torch.rand(frame.legal.shape, generator=generator).masked_fill(~frame.legal, -1).argmax(-1)
            )
            return torch.where(self.lazy, 1, drawn)
        drawn = torch.rand(*frame.obs.shape[:2], 2, generator=generator) * 2 - 1
        return torch.where(self.lazy[..., None], 0.0, drawn)

    def annotations(self) -> dict[str, Tensor]:
        return {"lazy": self.lazy}


def collect_toy(
    folder: Path,
    transitions: int = 300,
    *,
    seed: int = 0,
    discrete: bool = False,
    num_envs: int = 4,
    horizon: int = 12,
    pause: float = 0.0,
    resume: bool = False,
) -> None:
    """Collect a toy dataset into `folder`, or go on with the one that is there."""
    env = Toy(num_envs, discrete, horizon, pause)
    begin = Writer.resume(folder, env.spec) if resume else Writer(folder, env.spec, id="toy/random-v0")
    with begin as writer:
        collect(env, ToyPolicy(discrete), writer, transitions, seed)


def main(folder: str, transitions: str) -> None:
    """`toy.py FOLDER TRANSITIONS`: collect in a process of its own; says what went wrong."""
    torch.set_num_threads(1)
    try:
        collect_toy(Path(folder), int(transitions), num_envs=64)
    except OffmarlError as error:
        print(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
