"""A task of choices with a state, legality and death, for online training of mixed values."""

import torch
from torch import Tensor

from offmarl.envs.base import Environment, EnvSpec, Frame, Step
from offmarl.streams import stream

HORIZON = 4


class Signals(Environment):
    """Two agents are paid 1 a step for together showing the sign that each sees: blinking, the second one may die.

    Choice 3 is legal for nobody. The state is both signs. With the second agent dead the first is paid half.
    """

    def __init__(self, num_envs: int) -> None:
        names = ("first", "second")
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.spec = EnvSpec(
            id="signals",
            agents=names,
            groups=(names,),
            action_type="discrete",
            obs_names=(("sign_0", "sign_1", "sign_2"),) * 2,
            action_names=(("a", "b", "c", "d"),) * 2,
            state_names=tuple(f"{name}.{k}" for name in names for k in range(3)),
            horizon=HORIZON,
            shared_reward=True,
            has_agent_reward=False,
        )

    def reset(self, seed: int) -> Frame:
        self.generator = stream(seed, "signals")
        self.age = torch.zeros(self.num_envs, dtype=torch.int64)
        self.alive = torch.ones(self.num_envs, 2, dtype=torch.bool)
        return self.look()

    def look(self) -> Frame:
        self.sign = torch.randint(3, (self.num_envs, 2), generator=self.generator)
        obs = torch.nn.functional.one_hot(self.sign, 3).float() * self.alive.unsqueeze(2)
        legal = torch.tensor([True, True, True, False]).expand(self.num_envs, 2, 4).clone()
        legal[~self.alive] = torch.tensor([True, False, False, False])
        return Frame(obs, obs.flatten(1), legal, self.alive.clone())

    def step(self, action: Tensor) -> Step:
        legal = (action != 3) & ((action == 0) | self.alive)
        assert legal.all()
        right = (action == self.sign) & self.alive
        reward = right.all(1).float() + 0.5 * (right[:, 0] & ~self.alive[:, 1]).float()
        self.age += 1
        dies = torch.rand(self.num_envs, generator=self.generator) < 0.1
        self.alive[:, 1] &= ~dies
        truncated = self.age == HORIZON
        successor = self.look()
        frame = successor
        if truncated.any():
            self.age[truncated] = 0
            self.alive[truncated] = True
            frame = self.look().where(truncated, successor)
            self.sign = torch.where(frame.obs.any(2), frame.obs.argmax(2), self.sign)
        nobody = torch.zeros_like(truncated)
        return Step(frame, successor, reward, None, nobody, truncated)
