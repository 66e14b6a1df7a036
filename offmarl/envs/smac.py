"""StarCraft II battles: SMAC (Samvelyan et al. 2019) and SMACv2 (Ellis et al. 2023), by the package smacv2.

The team fights the game's own computer player. The environment does not tell who earned the team's reward, which is
the one that papers report. Copies run in worker processes, one game each.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from offmarl.envs.base import EnvSpec
from offmarl.envs.opponents.policy import refuse_opponent
from offmarl.envs.options import read_options
from offmarl.envs.pettingzoo import BackgroundPolicy, PettingZooEnvironment
from offmarl.envs.pettingzoo_build import start
from offmarl.envs.pettingzoo_worker import Description, Source
from offmarl.errors import UsageError
from offmarl.settings import UpToOne

SMACV2 = re.compile(r"smacv2_(?P<race>terran|protoss|zerg)_(?P<allies>\d+)_vs_(?P<enemies>\d+)")
MAPS = {  # of SMAC: allies, enemies
    "3m": (3, 3),
    "8m": (8, 8),
    "25m": (25, 25),
    "5m_vs_6m": (5, 6),
    "8m_vs_9m": (8, 9),
    "10m_vs_11m": (10, 11),
    "27m_vs_30m": (27, 30),
    "MMM": (10, 10),
    "MMM2": (10, 12),
    "2s3z": (5, 5),
    "3s5z": (8, 8),
    "3s5z_vs_3s6z": (8, 9),
    "3s_vs_3z": (3, 3),
    "3s_vs_4z": (3, 4),
    "3s_vs_5z": (3, 5),
    "1c3s5z": (9, 9),
    "2m_vs_1z": (2, 1),
    "corridor": (6, 24),
    "6h_vs_8z": (6, 8),
    "2s_vs_1sc": (2, 1),
    "so_many_baneling": (7, 32),
    "bane_vs_bane": (24, 24),
    "2c_vs_64zg": (2, 64),
}
_TEAMS: dict[str, dict[str, Any]] = {  # what SMACv2's configurations draw teams from
    "terran": {
        "unit_types": ["marine", "marauder", "medivac"],
        "weights": [0.45, 0.45, 0.1],
        "exception_unit_types": ["medivac"],
    },
    "protoss": {"unit_types": ["stalker", "zealot", "colossus"], "weights": [0.45, 0.45, 0.1]},
    "zerg": {
        "unit_types": ["zergling", "baneling", "hydralisk"],
        "weights": [0.45, 0.1, 0.45],
        "exception_unit_types": ["baneling"],
    },
}
_MAP_SIZE = 32


@dataclass(frozen=True)
class SmacOptions:
    """Options of SMAC maps; the defaults are the package's."""

    difficulty: Literal["1", "2", "3", "4", "5", "6", "7", "8", "9", "A"] = "7"
    reward_scale_rate: Annotated[float, Field(gt=0)] = 20.0  # the best return
    sparse: bool = False  # 1 for victory, -1 for defeat and nothing else
    fully_observable: bool = False
    last_action: bool = False  # observe the allies' last actions


@dataclass(frozen=True)
class SmacV2Options(SmacOptions):
    """Options of SMACv2's generated battles; the defaults are those of its configurations."""

    conic_view: bool = False  # agents see a cone and choose where to look
    surrounded: UpToOne = 0.5  # share of battles that begin surrounded
    observe_types: bool = True  # of allies


def options_of(env_id: str) -> type[SmacOptions]:
    """The options of an environment that has an id."""
    return SmacV2Options if SMACV2.fullmatch(env_id) else SmacOptions


def make_smac(
    env_id: str,
    num_envs: int,
    options: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    opponent: object = None,
    processes: int | None = None,
) -> PettingZooEnvironment:
    """E games of the map or team that `env_id` names.

    Raises `UsageError`, with the steps of installation, where smacv2, the game or its maps are missing: at once
    for the package, at the first `reset` for the others.
    """
    refuse_opponent(env_id, opponent)
    build = _Build(env_id, read_options(env_id, options_of(env_id), options))
    return start(build, num_envs, device, dtype, None, processes)


def capabilities(race: str, allies: int, enemies: int, options: SmacV2Options) -> dict[str, Any]:
    """SMACv2's capability configuration: who is drawn for the teams, and where they start."""
    return {
        "n_units": allies,
        "n_enemies": enemies,
        "team_gen": {"dist_type": "weighted_teams", "observe": options.observe_types, **_TEAMS[race]},
        "start_positions": {
            "dist_type": "surrounded_and_reflect",
            "p": options.surrounded,
            "map_x": _MAP_SIZE,
            "map_y": _MAP_SIZE,
        },
    }


class _Build:
    """How a battle is built and described."""

    def __init__(self, env_id: str, options: SmacOptions):
        self._id, self._options = env_id, options
        arguments: dict[str, Any] = {
            "difficulty": options.difficulty,
            "reward_scale_rate": options.reward_scale_rate,
            "reward_sparse": options.sparse,
            "fully_observable": options.fully_observable,
            "obs_last_action": options.last_action,
        }
        config = None
        if isinstance(options, SmacV2Options):
            match = SMACV2.fullmatch(env_id)
            assert match is not None
            allies, enemies = int(match["allies"]), int(match["enemies"])
            if min(allies, enemies) < 1:
                raise UsageError(f"{env_id}: both sides need a unit")
            config = capabilities(match["race"], allies, enemies, options)
            arguments |= {
                "map_name": f"10gen_{match['race']}",
                "conic_fov": options.conic_view,
                "num_fov_actions": 12,
                "obs_own_pos": True,
                "use_unit_ranges": True,
                "min_attack_range": 2,
            }
        else:
            arguments["map_name"] = env_id.removeprefix("smac_")
        self.source = Source(
            "offmarl.envs.smac_parallel",
            {"arguments": arguments, "capabilities": config},
            with_state=True,
            exact_ends=True,
            packages=("smacv2", "pysc2"),
            called=env_id,
        )

    def spec(self, description: Description) -> EnvSpec:
        """Names are the package's own, put as `unit.quantity`."""
        agents, names = description.agents, description.names
        owner = {agent: i for i, agent in enumerate(agents)}
        return EnvSpec(
            id=self._id,
            backend="smac",
            options=asdict(self._options),
            agents=agents,
            groups=(agents,),  # all observe alike, and their own type among the rest
            action_type="discrete",
            obs_names=tuple(tuple(observed) for observed in names["obs"]),
            action_names=(tuple(names["choices"]),) * len(agents),
            state_names=tuple(names["state"]),
            state_owner=tuple(owner.get(name.partition(".")[0], -1) for name in names["state"]),
            horizon=description.horizon,
            has_agent_reward=False,
            versions=description.versions,
        )

    def background(self, *_: Any) -> dict[str, BackgroundPolicy]:
        """Every agent learns."""
        return {}
