"""The ring buffer of online training: one contiguous float32 row a transition.

Shapes: E copies, B batch, N agents, O observation, A action dimensions, K discrete choices.
"""

import torch
from torch import Tensor

from offmarl.data.table import Batch, Statistics
from offmarl.envs.base import EnvSpec, Frame, Step


class ReplayBuffer:
    """The last `capacity` joint transitions, sampled uniformly with replacement, for one seed."""

    def __init__(self, spec: EnvSpec, capacity: int, device: torch.device | str = "cpu") -> None:
        n_agents, choices = spec.n_agents, spec.action_dim
        self.spec = spec
        shapes: dict[str, tuple[int, ...]] = {
            "obs": (n_agents, spec.obs_dim),
            "next_obs": (n_agents, spec.obs_dim),
            "action": (n_agents,) if spec.discrete else (n_agents, choices),
            "reward": (n_agents,),
            "terminated": (1,),
            "done": (1,),
        }
        if spec.discrete:
            shapes |= {"legal": (n_agents, choices), "next_legal": (n_agents, choices)}
        self.shapes, self.columns, width = shapes, {}, 0
        for name, shape in shapes.items():
            size = torch.Size(shape).numel()
            self.columns[name] = slice(width, width + size)
            width += size
        self.row = torch.empty(capacity, width, device=device)  # [capacity, W]
        self.written = 0

    def __len__(self) -> int:
        """Transitions held."""
        return min(self.written, len(self.row))

    def add(self, frame: Frame, action: Tensor, step: Step, reward: Tensor) -> None:
        """Append what E copies did: `action` [E, N, A] or [E, N], `reward` [E, N]."""
        copies = len(frame.obs)
        values = {
            "obs": frame.obs,
            "next_obs": step.successor.obs,
            "action": action,
            "reward": reward,
            "terminated": step.terminated,
            "done": step.done,
        }
        if self.spec.discrete:
            everything = torch.ones(copies, *self.shapes["legal"], device=self.row.device)
            values["legal"] = everything if frame.legal is None else frame.legal
            values["next_legal"] = everything if step.successor.legal is None else step.successor.legal
        where = (torch.arange(copies, device=self.row.device) + self.written) % len(self.row)
        joined = torch.cat([values[name].reshape(copies, -1).to(self.row) for name in self.columns], dim=1)
        self.row.index_copy_(0, where, joined)
        self.written += copies

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """`batch_size` joint transitions, as a batch of one seed (S = 1)."""
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self.row.device)
        block = self.row.index_select(0, index).unsqueeze(0)  # [1, B, W]
        part = {
            name: block[..., where].unflatten(-1, self.shapes[name]) for name, where in self.columns.items()
        }
        action = part["action"].long() if self.spec.discrete else part["action"]
        return Batch(
            obs=part["obs"],
            action=action,
            reward=part["reward"],
            next_obs=part["next_obs"],
            next_action=action,
            terminated=part["terminated"].squeeze(-1),
            done=part["done"].squeeze(-1),
            legal=part["legal"].bool() if self.spec.discrete else None,
            next_legal=part["next_legal"].bool() if self.spec.discrete else None,
        )

    def statistics(self) -> Statistics:
        """Moments of observations and rewards of what is held."""
        held = self.row[: len(self)]
        obs = held[:, self.columns["obs"]].unflatten(-1, self.shapes["obs"])
        reward = held[:, self.columns["reward"]]
        terminates = bool(held[:, self.columns["terminated"]].any())
        return Statistics(
            obs.mean(0), obs.std(0, correction=0), reward.mean(0), reward.std(0, correction=0), terminates
        )
