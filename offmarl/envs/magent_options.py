"""Options of the MAgent tasks, and the map that they stand for. Touches no magent2."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from offmarl.envs.magent_rules import Grid, battle, gather, pursuit
from offmarl.envs.options import read_options
from offmarl.settings import Count

REWARDS = {
    "magent2": {
        "step_reward": -0.005,
        "dead_penalty": -0.1,
        "attack_penalty": -0.1,
        "kill_reward": 5.0,
        "attack_opponent_reward": 0.2,
    },
    # Ma et al. 2025, section V-A: only a kill is worth anything, a hit that does not kill is not.
    "paper": {
        "step_reward": -0.005,
        "dead_penalty": -0.1,
        "attack_penalty": -0.1,
        "kill_reward": 5.0,
        "attack_opponent_reward": 0.0,
    },
}
PURSUIT_REWARDS = {
    "tag_penalty": -0.2,
    "tag_reward": 1.0,
}  # magent2's, and those of Ma et al. 2025, section V-B
GATHER_REWARDS = {
    "step_reward": -0.01,
    "attack_penalty": -0.1,
    "dead_penalty": -1.0,
    "attack_food_reward": 0.5,
    "kill_reward": 5.0,
}


@dataclass(frozen=True)
class BattleOptions:
    """Options of magent_battle."""

    agents: Count = 64  # a side
    map_size: Count | None = (
        None  # cells along a side; None: as sparse as magent2's own (64 agents on 40 cells)
    )
    horizon: Count = 400  # as in the mean-field papers; magent2's PettingZoo layer has 1,000
    minimap: bool = True
    rewards: Literal["magent2", "paper"] = "magent2"
    background: Literal["blue", "red", "none"] = (
        "blue"  # who does not learn; none: both do. Red starts on the left
    )
    opponent: str = "random"  # policy of the background: random or charge; `make` takes others


@dataclass(frozen=True)
class PursuitOptions:
    """Options of magent_pursuit. `agents` counts the predators."""

    agents: Count = 20
    prey: Count | None = None  # None: twice as many
    map_size: Count | None = None  # None: as sparse as magent2's own (20 predators on 40 cells)
    horizon: Count = 500
    minimap: bool = True
    background: Literal["prey", "predator", "none"] = "prey"
    opponent: str = "random"


@dataclass(frozen=True)
class GatherOptions:
    """Options of magent_gather."""

    agents: Count | None = None  # None: on every place of the map, 495 on one of 200 cells
    map_size: Count = 200
    horizon: Count = 500
    minimap: bool = True


MagentOptions = BattleOptions | PursuitOptions | GatherOptions
OPTIONS: dict[str, type[Any]] = {
    "magent_battle": BattleOptions,
    "magent_pursuit": PursuitOptions,
    "magent_gather": GatherOptions,
}


def grid_of(env_id: str, options: Mapping[str, Any]) -> Grid:
    """The map of a task. Raises `UsageError` for options that do not exist, or a map that is too small."""
    chosen: MagentOptions = read_options(env_id, OPTIONS[env_id], options)
    if isinstance(chosen, BattleOptions):
        return battle(chosen.agents, chosen.map_size, chosen.minimap, REWARDS[chosen.rewards])
    if isinstance(chosen, PursuitOptions):
        prey = 2 * chosen.agents if chosen.prey is None else chosen.prey
        return pursuit(chosen.agents, prey, chosen.map_size, chosen.minimap, PURSUIT_REWARDS)
    return gather(chosen.agents, chosen.map_size, chosen.minimap, GATHER_REWARDS)
