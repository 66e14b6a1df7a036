"""A particle task as an `Environment`: actions in, observations and rewards out, resets."""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from offmarl.envs.base import Environment, EnvSpec, Frame, Step
from offmarl.envs.opponents.policy import Opponent
from offmarl.envs.particle.task import Task
from offmarl.envs.particle.world import Entity
from offmarl.errors import UsageError
from offmarl.streams import stream_seed

BUTTONS = ("no_action", "move_left", "move_right", "move_down", "move_up")
ACTION_NAMES = {"force": ("force_x", "force_y"), "buttons": BUTTONS, "discrete": BUTTONS}
_BUTTON_FORCES = ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))


class ParticleEnvironment(Environment):
    """E copies of a particle task; some movers learn, the others follow opponents inside the environment.

    `learning` names the sides that learn, `opponents` gives the policy of every other side.
    `opponent_generator` is what random opponents draw from: `reset` seeds it. `options` are recorded in the
    spec.
    """

    def __init__(
        self,
        task: Task,
        learning: tuple[str, ...],
        opponents: Mapping[str, Opponent],
        opponent_generator: torch.Generator,
    ):
        world, sides = task.world, task.sides()
        self.task = task
        self.num_envs = world.num_envs
        self.device = world.table.device
        self._dtype = world.table.dtype
        learners = [mover for side in learning for mover in sides[side]]
        background = [mover for side in opponents for mover in sides[side]]
        self.spec = _describe(task, [sides[side] for side in learning], background)
        self._learning = slice(learners[0], learners[-1] + 1)  # a side's movers stand together
        self._opponents = [
            (slice(sides[side][0], sides[side][-1] + 1), len(task.observation(sides[side][0])), policy)
            for side, policy in opponents.items()
        ]

        # One gather makes every observation: the learning agents' rows, padded to O, then the background's.
        nothing = [(world.zero_row, world.zero_row)]
        rows: list[tuple[int, int]] = []
        for mover in learners:
            own = [(reading.plus, reading.minus) for reading in task.observation(mover)]
            rows += own + nothing * (self.spec.obs_dim - len(own))
        for mover in background:
            rows += [(reading.plus, reading.minus) for reading in task.observation(mover)]
        self._plus = torch.tensor([plus for plus, _ in rows], device=self.device)
        self._minus = torch.tensor([minus for _, minus in rows], device=self.device)
        self._background_obs = torch.empty(0)

        self._button_forces = torch.tensor(_BUTTON_FORCES, device=self.device, dtype=self._dtype)
        self._reset_generator = torch.Generator(self.device)
        self._opponent_generator = opponent_generator
        self._time = torch.zeros(self.num_envs, device=self.device, dtype=torch.int64)
        self._steps_to_next_end = 0  # host-side, so that a GPU need not be asked each step; 0: not started

    @property
    def entities(self) -> tuple[Entity, ...]:
        """Every disc in the world (names, kinds, sizes), movers first."""
        return self.task.world.entities

    def entity_positions(self) -> Tensor:
        """Where every entity is now, [E, M, 2]: a copy."""
        return self.task.world.position.permute(2, 0, 1).clone(memory_format=torch.contiguous_format)

    def entity_velocities(self) -> Tensor:
        """How fast every mover is now, [E, V, 2]: a copy."""
        return self.task.world.velocity.permute(2, 0, 1).clone(memory_format=torch.contiguous_format)

    def reset(self, seed: int) -> Frame:
        """Start a new episode in every copy; the same seed gives the same episodes."""
        self._reset_generator.manual_seed(stream_seed(seed, "particle", "reset"))
        self._opponent_generator.manual_seed(stream_seed(seed, "particle", "opponent"))
        self.task.world.reset(self._reset_generator)
        self._time.zero_()
        self._steps_to_next_end = self.spec.horizon
        return self._look()

    def set_state(self, position: Tensor, velocity: Tensor | None = None, time: Tensor | int = 0) -> Frame:
        """Put every copy into a given state: positions [E, M, 2], velocities [E, V, 2], steps taken [E].

        The order is that of `entities`. Raises `UsageError` for other shapes, or a time outside the episode.
        """
        world = self.task.world
        wanted = (self.num_envs, len(world.entities), 2)
        if position.shape != wanted:
            raise UsageError(f"positions have shape {tuple(position.shape)}, expected {wanted}")
        if velocity is not None and velocity.shape != (self.num_envs, world.movers, 2):
            shape = (self.num_envs, world.movers, 2)
            raise UsageError(f"velocities have shape {tuple(velocity.shape)}, expected {shape}")
        taken = torch.as_tensor(time)
        if not 0 <= int(taken.min()) <= int(taken.max()) < self.spec.horizon:
            raise UsageError(f"time must be in 0..{self.spec.horizon - 1}, the steps of an episode")
        world.position.copy_(position.permute(1, 2, 0))
        if velocity is None:
            world.velocity.zero_()
        else:
            world.velocity.copy_(velocity.permute(1, 2, 0))
        self._time.copy_(taken)
        self._steps_to_next_end = self.spec.horizon - int(self._time.max())
        return self._look()

    def step(self, action: Tensor) -> Step:
        """Advance every copy by one joint action: [E, N, A] in [-1, 1], or [E, N] integers.

        Actions outside the bounds are clipped. Raises `UsageError` before the first `reset`, for another shape and,
        where that can be seen without asking a GPU, for choices that do not exist.
        """
        if not self._steps_to_next_end:
            raise UsageError("call reset before step")
        world = self.task.world
        world.step(self._control(action))
        agent_reward = self.task.reward()[self._learning].t().contiguous()  # [E, N]
        successor = frame = self._look()

        self._time += 1
        self._steps_to_next_end -= 1
        truncated = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        if not self._steps_to_next_end:
            truncated = self._time >= self.spec.horizon
            world.reset(self._reset_generator, where=truncated)
            self._time.masked_fill_(truncated, 0)
            self._steps_to_next_end = self.spec.horizon - int(self._time.max())
            frame = self._look()
        return Step(
            frame=frame,
            successor=successor,
            team_reward=agent_reward.sum(1),
            agent_reward=agent_reward,
            terminated=torch.zeros_like(truncated),
            truncated=truncated,
        )

    def _look(self) -> Frame:
        """What the agents observe now; what the background observes is kept for its next action."""
        world = self.task.world
        self.task.refresh()
        seen = world.table.index_select(0, self._plus).sub_(world.table.index_select(0, self._minus))
        seen = seen.t().contiguous()  # [E, all observations one after another]
        agents, width = self.spec.n_agents, self.spec.obs_dim
        obs = seen[:, : agents * width]
        if self._opponents:
            self._background_obs = seen[:, agents * width :]
            obs = obs.contiguous()
        legal = None
        if self.spec.discrete:
            legal = torch.ones(self.num_envs, agents, len(BUTTONS), dtype=torch.bool, device=self.device)
        # Of a single copy `contiguous` would be a view that moves with the world.
        position = (
            world.position[self._learning].permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
        )
        return Frame(obs=obs.view(-1, agents, width), legal=legal, position=position)

    def _control(self, action: Tensor) -> Tensor:
        """Forces of all movers, [V, 2, E], from the learning agents' actions and the opponents'."""
        expected: tuple[int, ...] = (self.num_envs, self.spec.n_agents)
        if not self.spec.discrete:
            expected += (self.spec.action_dim,)
        if action.shape != expected:
            raise UsageError(f"{self.spec.id}: actions have shape {tuple(action.shape)}, expected {expected}")
        if self.spec.discrete and action.device.type == "cpu":
            low, high = torch.aminmax(action)
            if low < 0 or high >= len(BUTTONS):
                raise UsageError(
                    f"{self.spec.id}: actions from {low} to {high}, expected 0 to {len(BUTTONS) - 1}"
                )
        action = action.to(self.device)
        if self.spec.discrete:
            force = self._button_forces[action]
        else:
            force = action.to(self._dtype).clamp(-1, 1)
            if self.task.options.actions == "buttons":
                force = (force[..., 2::2] - force[..., 1::2]) / 2  # each button is pressed (a + 1) / 2
        force = force.permute(1, 2, 0)
        if not self._opponents:
            return force.contiguous()

        control = torch.empty(self.task.world.movers, 2, self.num_envs, device=self.device, dtype=self._dtype)
        control[self._learning] = force
        start = 0
        for movers, width, policy in self._opponents:
            end = start + width * (movers.stop - movers.start)
            obs = self._background_obs[:, start:end].unflatten(1, (-1, width))
            control[movers] = policy(obs).to(self._dtype).permute(1, 2, 0)
            start = end
        return control


def _describe(task: Task, groups: list[tuple[int, ...]], background: list[int]) -> EnvSpec:
    """The spec of a task whose learning agents are `groups` of movers."""
    names = [entity.name for entity in task.world.entities]
    learning = [mover for group in groups for mover in group]
    causes = [task.causes(mover) for mover in learning]
    known = [own for own in causes if own is not None]
    action = task.options.actions
    return EnvSpec(
        id=task.id,
        options=asdict(task.options),
        agents=tuple(names[mover] for mover in learning),
        groups=tuple(tuple(names[mover] for mover in group) for group in groups),
        background=tuple(names[mover] for mover in background),
        action_type="discrete" if action == "discrete" else "continuous",
        obs_names=tuple(tuple(reading.name for reading in task.observation(mover)) for mover in learning),
        action_names=(ACTION_NAMES[action],) * len(learning),
        horizon=task.options.horizon,
        shared_reward=task.shared_reward and len(groups) == 1,
        causes=tuple(known) if len(known) == len(learning) else None,
    )
