"""Level-based foraging, the robotic warehouse, and any environment of the Gymnasium multi-agent convention.

They run in worker processes, as PettingZoo's do. Rewards are each agent's own, and add up to the team's.
Shapes: N agents, O observation, K choices.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch

from offmarl.envs.base import EnvSpec
from offmarl.envs.opponents.policy import refuse_opponent
from offmarl.envs.options import read_options
from offmarl.envs.pettingzoo import BackgroundPolicy, PettingZooEnvironment
from offmarl.envs.pettingzoo_build import describe_environment, start
from offmarl.envs.pettingzoo_worker import Description, Source
from offmarl.errors import UsageError
from offmarl.settings import Count, NonNegative

WORKER = "offmarl.envs.gymnasium_parallel"
LBF = re.compile(r"lbf_(?P<height>\d+)x(?P<width>\d+)_(?P<players>\d+)p_(?P<foods>\d+)f")
RWARE = re.compile(
    r"rware_(?P<size>tiny|small|medium|large)_(?P<agents>\d+)ag(?:_(?P<difficulty>easy|hard))?"
)
FORAGING_CHOICES = ("none", "move_north", "move_south", "move_west", "move_east", "load")
WAREHOUSE_CHOICES = ("none", "forward", "turn_left", "turn_right", "toggle_load")
_DIRECTIONS = tuple(f"facing_{direction}" for direction in ("up", "down", "left", "right"))
_WAREHOUSES = {"tiny": (1, 3), "small": (2, 3), "medium": (2, 5), "large": (3, 5)}  # rows, columns of shelves
_REQUESTS = {"easy": 2.0, None: 1.0, "hard": 0.5}  # shelves asked for at once, for each agent


@dataclass(frozen=True)
class ForagingOptions:
    """Options of level-based foraging (Christianos et al. 2020); the defaults are those of its v3 tasks."""

    horizon: Count = 50
    coop: bool = False  # every food needs all players
    sight: Count | None = None  # cells that a player sees in each direction; None: the whole field
    max_player_level: Count = 2
    max_food_level: Count | None = None  # None: what the three weakest players can carry together
    normalise_reward: bool = True  # all food of an episode is worth 1
    penalty: NonNegative = 0.0  # for trying to load what is too heavy
    observe_levels: bool = True  # of players
    state: bool = False  # a global state: all observations, one after another


@dataclass(frozen=True)
class WarehouseOptions:
    """Options of the robotic warehouse (Papoudakis et al. 2021); the defaults are those of its v2 tasks."""

    horizon: Count = 500
    reward: Literal["individual", "two_stage"] = "individual"  # two_stage: half for bringing the shelf back
    sensor_range: Count = 1
    column_height: Count = 8
    requests: Count | None = None  # shelves asked for at once; None: by the difficulty
    normalised_coordinates: bool = False
    state: bool = False


def options_of(env_id: str) -> type[ForagingOptions] | type[WarehouseOptions]:
    """The options of an environment that has an id."""
    return ForagingOptions if LBF.fullmatch(env_id) else WarehouseOptions


def make_gymnasium(
    env_id: str,
    num_envs: int,
    target: str | None,
    options: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    opponent: object = None,
    processes: int | None = None,
) -> PettingZooEnvironment:
    """The task `env_id`, or what `target` names (see `gymnasium_parallel.parallel_env`) under that id.

    Of a target's options, `horizon` (truncate there) and `state` (all observations, one after another) are the
    adapter's own. Raises `UsageError` for what cannot be made.
    """
    refuse_opponent(env_id, opponent)
    if target is not None:
        build: TupleBuild = _TargetBuild(env_id, target, options)
    elif match := LBF.fullmatch(env_id):
        build = _ForagingBuild(match, read_options(env_id, ForagingOptions, options))
    else:
        match = RWARE.fullmatch(env_id)
        assert match is not None  # the registry knows no others
        build = _WarehouseBuild(match, read_options(env_id, WarehouseOptions, options))
    return start(build, num_envs, device, dtype, None, processes)


class TupleBuild(ABC):
    """What all environments of the convention have in common: nobody is in the background."""

    source: Source

    @abstractmethod
    def spec(self, description: Description) -> EnvSpec:
        """The spec of what a worker described."""

    def background(self, *_: Any) -> dict[str, BackgroundPolicy]:
        """Every agent learns."""
        return {}


class _TargetBuild(TupleBuild):
    """Any environment: its numbers have no names."""

    def __init__(self, env_id: str, target: str, options: Mapping[str, Any]):
        self._id, self._target, self._options = env_id, target, dict(options)
        arguments = dict(options)
        horizon, with_state = arguments.pop("horizon", None), arguments.pop("state", False)
        if horizon is not None and (not isinstance(horizon, int) or horizon < 1):
            raise UsageError(f"option horizon={horizon!r}: expected a positive number of steps")
        self.source = Source(
            WORKER,
            {"target": target, "arguments": arguments},
            horizon,
            with_state=bool(with_state),
            packages=("gymnasium", target.partition(":")[0]),
            called=target,
        )

    def spec(self, description: Description) -> EnvSpec:
        return describe_environment(
            self._id, f"gymnasium:{self._target}", self._options, description, background=()
        )


class _NamedBuild(TupleBuild):
    """A task whose observations are documented."""

    package: ClassVar[str]
    extra: ClassVar[str]
    target: ClassVar[str]  # module:Class
    choices: ClassVar[tuple[str, ...]]

    def __init__(self, match: re.Match[str], options: Any):
        self._id, self._given, self._options = match.string, match.groupdict(), options
        if find_spec(self.package) is None:
            raise UsageError(
                f"{self._id} needs the package {self.package}, which is not installed: "
                f'pip install "offmarl[{self.extra}]"'
            )
        # The horizon is the wrapper's: these environments report running out of time as termination.
        self.source = Source(
            WORKER,
            {"target": self.target, "arguments": self.arguments(), "horizon": options.horizon},
            with_state=options.state,
            exact_ends=True,
            packages=("gymnasium", self.package),
            called=self._id,
        )

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What the class takes."""

    @abstractmethod
    def obs_names(self, agent: int, agents: int) -> tuple[str, ...]:
        """What the numbers of an agent's observation are."""

    def spec(self, description: Description) -> EnvSpec:
        agents = description.agents
        obs_names = {agent: self.obs_names(i, len(agents)) for i, agent in enumerate(agents)}
        spec = describe_environment(
            self._id,
            "gymnasium",
            asdict(self._options),
            description,
            background=(),
            obs_names=obs_names,
            action_names=dict.fromkeys(agents, self.choices),
        )
        if not self._options.state:
            return spec
        names = tuple(f"{agent}.{name}" for agent in agents for name in obs_names[agent])
        return spec.model_copy(update={"state_names": names})


class _ForagingBuild(_NamedBuild):
    """Foraging: foods, then oneself, then the other players; three numbers each."""

    package, extra, choices = "lbforaging", "foraging", FORAGING_CHOICES
    target = "lbforaging.foraging:ForagingEnv"

    def arguments(self) -> dict[str, Any]:
        options, given = self._options, {name: int(text) for name, text in self._given.items()}
        for name, least in (("height", 3), ("width", 3), ("players", 1), ("foods", 1)):
            if given[name] < least:
                raise UsageError(f"{self._id}: {given[name]} as {name}, expected at least {least}")
        return {
            "players": given["players"],
            "min_player_level": 1,
            "max_player_level": options.max_player_level,
            "min_food_level": 1,
            "max_food_level": options.max_food_level,
            "field_size": (given["height"], given["width"]),
            "max_num_food": given["foods"],
            "sight": options.sight or max(given["height"], given["width"]),
            "max_episode_steps": options.horizon + 1,  # never reached
            "force_coop": options.coop,
            "normalize_reward": options.normalise_reward,
            "observe_agent_levels": options.observe_levels,
            "penalty": options.penalty,
        }

    def obs_names(self, agent: int, agents: int) -> tuple[str, ...]:
        size = max(int(self._given["height"]), int(self._given["width"]))
        everything = (self._options.sight or size) >= size
        # Where only a part is seen, coordinates are those of the part, and only who is seen has a place.
        place = ("position_y", "position_x") if everything else ("window_y", "window_x")
        others = [other for other in range(agents) if other != agent]
        called = [f"agent_{other}." if everything else f"seen_{k}." for k, other in enumerate(others)]
        player = (*place, "level") if self._options.observe_levels else place
        foods = [f"food_{k}.{name}" for k in range(int(self._given["foods"])) for name in (*place, "level")]
        return (*foods, *(f"{who}{name}" for who in ("", *called) for name in player))


class _WarehouseBuild(_NamedBuild):
    """The warehouse: oneself, then the cells around, row by row."""

    package, extra, choices = "rware", "warehouse", WAREHOUSE_CHOICES
    target = "offmarl.envs.gymnasium_warehouse:warehouse"

    def arguments(self) -> dict[str, Any]:
        options, agents = self._options, int(self._given["agents"])
        rows, columns = _WAREHOUSES[self._given["size"]]
        requests = options.requests or int(agents * _REQUESTS[self._given["difficulty"]])
        if agents < 1 or requests < 1:
            raise UsageError(f"{self._id}: {agents} agents and {requests} requests, expected at least one")
        return {
            "n_agents": agents,
            "shelf_rows": rows,
            "shelf_columns": columns,
            "column_height": options.column_height,
            "sensor_range": options.sensor_range,
            "request_queue_size": requests,
            "reward_type": options.reward,
            "normalised_coordinates": options.normalised_coordinates,
        }

    def obs_names(self, agent: int, agents: int) -> tuple[str, ...]:
        own = ("position_x", "position_y", "carries_shelf", *_DIRECTIONS, "on_highway")
        of_cell = ("has_agent", *_DIRECTIONS, "has_shelf", "shelf_requested")
        reach = range(-self._options.sensor_range, self._options.sensor_range + 1)
        cells = [f"cell_x{x:+d}_y{y:+d}" for y in reach for x in reach]
        return (*own, *(f"{cell}.{name}" for cell in cells for name in of_cell))
