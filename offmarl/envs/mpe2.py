"""What the PettingZoo adapter knows of mpe2's tasks: arguments, observations, who is in the background."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offmarl.envs.particle.environment import ACTION_NAMES
from offmarl.envs.particle.spread import Spread, SpreadOptions
from offmarl.envs.particle.tag import HuntOptions, Tag
from offmarl.envs.particle.task import Actions
from offmarl.settings import Count, Natural, UpToOne

Names = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Mpe2Options:
    """Options that every mpe2 task has."""

    agents: Count = 3  # learning agents
    horizon: Count = 25
    actions: Actions = "force"
    state: bool = False  # mpe2's global state: all observations, one after another


@dataclass(frozen=True)
class Mpe2SpreadOptions(Mpe2Options):
    """Options of mpe_spread."""

    local_ratio: UpToOne = 0.5


@dataclass(frozen=True)
class Mpe2TagOptions(Mpe2Options):
    """Options of mpe_tag."""

    prey: Count = 1
    obstacles: Natural = 2
    prey_policy: str = "trained"  # trained, flee, random or a .safetensors file
    background: Literal["prey", "none"] = "prey"  # none: both sides learn


@dataclass(frozen=True)
class Mpe2WorldOptions(Mpe2Options):
    """Options of mpe_world; the first of the predators is their leader."""

    agents: Count = 4
    prey: Count = 2
    obstacles: Natural = 1
    food: Count = 2
    forests: Count = 2
    prey_policy: str = "trained"
    background: Literal["prey", "none"] = "prey"


@dataclass(frozen=True)
class Mpe2Task:
    """One task of mpe2."""

    module: str
    options_class: type[Mpe2Options]
    arguments: Callable[[Any], dict[str, Any]]  # options -> what parallel_env takes
    obs_names: Callable[[Any], Names]  # options -> names for every agent, prey included
    shared_reward: bool = False
    prey_prefix: str | None = None


def action_names(actions: Actions, agents: Sequence[str]) -> Names:
    """Names of the actions of each agent: mpe_world's leader also speaks."""
    words = [f"say_{k}" for k in range(4)]
    moves = ACTION_NAMES[actions]
    if actions == "discrete":  # mpe2 numbers the pairs with the move running fastest
        leader = tuple(f"{word}.{move}" for word in words for move in moves)
    else:
        leader = (*moves, *words)
    return tuple(leader if agent.startswith("lead") else moves for agent in agents)


def encode_force(force: Tensor, actions: Actions) -> Tensor:
    """Forces [E, P, 2] in the convention `actions`; as one button, the axis with the larger force, if there is one."""
    if actions == "force":
        return force
    if actions == "buttons":
        pressed = torch.stack([force.clamp_max(0).neg(), force.clamp_min(0)], -1).flatten(
            -2
        )  # left right down up
        return torch.nn.functional.pad(2 * pressed - 1, (1, 0), value=-1.0)
    axis = force.abs().argmax(-1, keepdim=True)  # [E, P, 1]
    strongest = force.gather(-1, axis)
    return (1 + 2 * axis + (strongest > 0)).masked_fill(strongest == 0, 0).squeeze(-1)


def _spread_names(options: Mpe2SpreadOptions) -> Names:
    task = Spread(SpreadOptions(agents=options.agents), num_envs=1)
    return tuple(tuple(r.name for r in task.observation(i)) for i in range(options.agents))


def _tag_names(options: Mpe2TagOptions) -> Names:
    task = Tag(HuntOptions(agents=options.agents, prey=options.prey, obstacles=options.obstacles), num_envs=1)
    return tuple(tuple(r.name for r in task.observation(i)) for i in range(options.agents + options.prey))


def _world_names(options: Mpe2WorldOptions) -> Names:
    """After the offsets, predators see the prey's velocities, forests and the message, prey forests first."""
    predators = ["leadadversary_0", *(f"adversary_{i}" for i in range(options.agents - 1))]
    prey = [f"agent_{i}" for i in range(options.prey)]
    scenery = [f"landmark_{i}" for i in range(options.obstacles)]
    scenery += [f"food_{i}" for i in range(options.food)] + [f"forest_{i}" for i in range(options.forests)]
    inside = [f"in_forest_{k}" for k in range(options.forests)]
    message = [f"{predators[0]}.message_{k}" for k in range(4)]
    names = []
    for viewer in predators + prey:
        others = [agent for agent in predators + prey if agent != viewer]
        own = [f"{quantity}_{axis}" for quantity in ("velocity", "position") for axis in "xy"]
        offsets = [f"{name}.relative_{axis}" for name in scenery + others for axis in "xy"]
        velocities = [f"{name}.velocity_{axis}" for name in others if name in prey for axis in "xy"]
        rest = inside + velocities if viewer in prey else velocities + inside + message
        names.append(tuple(own + offsets + rest))
    return tuple(names)


MPE2_TASKS = {
    "mpe_spread": Mpe2Task(
        module="mpe2.simple_spread_v3",
        options_class=Mpe2SpreadOptions,
        arguments=lambda options: {"N": options.agents, "local_ratio": options.local_ratio},
        obs_names=_spread_names,
    ),
    "mpe_tag": Mpe2Task(
        module="mpe2.simple_tag_v3",
        options_class=Mpe2TagOptions,
        arguments=lambda options: {
            "num_adversaries": options.agents,
            "num_good": options.prey,
            "num_obstacles": options.obstacles,
        },
        obs_names=_tag_names,
        shared_reward=True,
        prey_prefix="agent_",
    ),
    "mpe_world": Mpe2Task(
        module="mpe2.simple_world_comm_v3",
        options_class=Mpe2WorldOptions,
        arguments=lambda options: {
            "num_adversaries": options.agents,
            "num_good": options.prey,
            "num_obstacles": options.obstacles,
            "num_food": options.food,
            "num_forests": options.forests,
        },
        obs_names=_world_names,
        prey_prefix="agent_",
    ),
}
