"""The ring buffer of online training: one contiguous float32 row a transition.

Shapes: E copies, B batch, N agents, O observation, A action dimensions, K discrete choices, D state.
"""

import torch
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.data.table import Batch, Statistics
from offmarl.envs.base import EnvSpec, Frame, Step


class ReplayBuffer:
    """The last `capacity` joint transitions, sampled uniformly with replacement, for one seed.

    Of what is seen a row holds a pair: the frame acted on and its successor.
    """

    def __init__(self, spec: EnvSpec, capacity: int, device: torch.device | str = "cpu") -> None:
        n_agents, choices = spec.n_agents, spec.action_dim
        self.spec = spec
        shapes: dict[str, tuple[int, ...]] = {
            "obs": (2, n_agents, spec.obs_dim),
            "alive": (2, n_agents),
            "action": (n_agents,) if spec.discrete else (n_agents, choices),
            "reward": (n_agents,),
            "terminated": (),
            "done": (),
        }
        if spec.state_dim:
            shapes["state"] = (2, spec.state_dim)
        if spec.discrete:
            shapes["legal"] = (2, n_agents, choices)
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
        values = {"action": action, "reward": reward, "terminated": step.terminated, "done": step.done}
        for name in self.columns.keys() - values.keys():
            pair = getattr(frame, name), getattr(step.successor, name)
            everything = torch.ones(copies, *self.shapes[name][1:], device=self.row.device)
            values[name] = torch.stack(
                [everything if seen is None else seen.to(self.row) for seen in pair], 1
            )
        where = (torch.arange(copies, device=self.row.device) + self.written) % len(self.row)
        joined = torch.cat([values[name].reshape(copies, -1).to(self.row) for name in self.columns], dim=1)
        self.row.index_copy_(0, where, joined)
        self.written += copies

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch | EpisodeBatch:
        """`batch_size` joint transitions of one seed (S = 1), as learners of this kind of action take them."""
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self.row.device)
        block = self.row.index_select(0, index).unsqueeze(0)  # [1, B, W]
        part = {
            name: block[..., where].unflatten(-1, self.shapes[name] or (1,))
            for name, where in self.columns.items()
        }
        if self.spec.discrete:
            return EpisodeBatch(
                obs=part["obs"],
                action=part["action"].long().unsqueeze(2),
                reward=part["reward"].unsqueeze(2),
                terminated=part["terminated"],
                valid=torch.ones_like(part["terminated"]),
                state=part.get("state"),
                legal=part["legal"].bool(),
                alive=part["alive"].bool(),
            )
        state = part.get("state")
        return Batch(
            obs=part["obs"][:, :, 0],
            action=part["action"],
            reward=part["reward"],
            next_obs=part["obs"][:, :, 1],
            next_action=part["action"],
            terminated=part["terminated"].squeeze(-1),
            done=part["done"].squeeze(-1),
            state=None if state is None else state[:, :, 0],
            next_state=None if state is None else state[:, :, 1],
            alive=part["alive"][:, :, 0].bool(),
            next_alive=part["alive"][:, :, 1].bool(),
        )

    def statistics(self) -> Statistics:
        """Moments of observations, states and rewards of what is held."""
        held = self.row[: len(self)]

        def moments(name: str) -> tuple[Tensor, Tensor]:
            values = held[:, self.columns[name]].unflatten(-1, self.shapes[name])
            values = values if name == "reward" else values[:, 0]
            return values.mean(0), values.std(0, correction=0)

        terminates = bool(held[:, self.columns["terminated"]].any())
        state_mean, state_std = moments("state") if "state" in self.columns else (None, None)
        alive = held[:, self.columns["alive"]].unflatten(-1, self.shapes["alive"])
        deaths = bool((alive[:, 0] > alive[:, 1]).any())
        return Statistics(
            *moments("obs"), *moments("reward"), terminates, state_mean, state_std, deaths=deaths
        )
