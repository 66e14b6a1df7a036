"""Options -> a particle environment with the right opponents inside."""

from dataclasses import replace
from typing import Any

import torch

from offmarl.envs.opponents.policy import Opponent, make_opponent, refuse_opponent
from offmarl.envs.particle.environment import ParticleEnvironment
from offmarl.envs.particle.tag import HuntOptions
from offmarl.envs.particle.task import ParticleOptions, Task
from offmarl.errors import UsageError


def build(
    task_class: Any,  # a concrete subclass of Task, which takes (options, num_envs, device, dtype)
    options: ParticleOptions,
    num_envs: int,
    device: torch.device | str,
    dtype: torch.dtype,
    opponent: Opponent | None = None,
) -> ParticleEnvironment:
    """Make a task's environment; `opponent` replaces the policy that the options name for the background.

    Raises `UsageError` where there is no background side to give an opponent to, or no such policy.
    """
    generator = torch.Generator(device)
    if not isinstance(options, HuntOptions):
        refuse_opponent(task_class.id, opponent)
        task: Task = task_class(options, num_envs, device, dtype)
        return ParticleEnvironment(task, tuple(task.sides()), {}, generator)

    if opponent is not None:
        if options.background == "none":
            raise UsageError(f"{task_class.id}: with background=none both sides learn, there is no opponent")
        # Recorded as "custom": an environment with a caller's opponent cannot be rebuilt from its spec.
        if options.background == "prey":
            options = replace(options, prey_policy="custom")
        else:
            options = replace(options, predator_policy="custom")
    task = task_class(options, num_envs, device, dtype)
    sides = task.sides()
    learning = tuple(side for side in sides if side != options.background)
    opponents: dict[str, Opponent] = {}
    if options.background != "none":
        side, other = options.background, learning[0]
        opponents[side] = opponent or make_opponent(
            options.prey_policy if side == "prey" else options.predator_policy,
            env_id=task.id,
            side=side,
            obs_names=[reading.name for reading in task.observation(sides[side][0])],
            targets=[task.world.entities[mover].name for mover in sides[other]],
            generator=generator,
            dtype=dtype,
            arena=task_class.arena,
        )
    return ParticleEnvironment(task, learning, opponents, generator)
