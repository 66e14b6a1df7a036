"""SMAX: the StarCraft-like battles of Rutherford et al. (2023, JaxMARL), many at once.

The team fights an enemy that follows jaxmarl's heuristic, until one side is gone or time is up. The team's reward
is what jaxmarl pays: the share of the enemy's health that was taken away in the step, and 1 for victory. The truth
about who earned it, `agent_reward`: an ally earns what its own hits took, and whatever nobody's hits took (an enemy
that ran into a wall) or that is not about hits (victory) belongs to all alike.

Shapes: E copies, N allies, M enemies, U = N + M units, O observation, K choices, D state.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from offmarl.envs.base import Environment, EnvSpec, Frame, Step
from offmarl.errors import UsageError
from offmarl.streams import stream_seed

if TYPE_CHECKING:
    from offmarl.envs.smax_battle import Battlefield, Battles, View

SCENARIOS = {  # jaxmarl's own: allies, enemies
    "3m": (3, 3),
    "2s3z": (5, 5),
    "25m": (25, 25),
    "3s5z": (8, 8),
    "8m": (8, 8),
    "5m_vs_6m": (5, 6),
    "10m_vs_11m": (10, 11),
    "27m_vs_30m": (27, 30),
    "3s5z_vs_3s6z": (8, 9),
    "3s_vs_5z": (3, 5),
    "6h_vs_8z": (6, 8),
    "smacv2_5_units": (5, 5),
    "smacv2_10_units": (10, 10),
    "smacv2_20_units": (20, 20),
}
UNIT_TYPES = ("marine", "marauder", "stalker", "zealot", "zergling", "hydralisk")
MOVES = ("move_north", "move_east", "move_south", "move_west", "stop")
_OF_OTHERS = ("health", "relative_x", "relative_y", "moved_x", "moved_y", "attacked", "cooldown")
_OF_SELF = ("health", "position_x", "position_y", "cooldown")
_TYPE_BITS = tuple(f"is_{unit_type}" for unit_type in UNIT_TYPES)
_SECTORS, _SHOWN = 32, 2  # of a conic observation: sectors, units shown in each
_BLOCKS = 8  # battles begin in blocks of an eighth of the copies, because few end in one step


@dataclass(frozen=True)
class SmaxOptions:
    """Options of the SMAX battles; the defaults are jaxmarl's."""

    horizon: Annotated[int, Field(ge=1)] = 101  # jaxmarl's max_steps=100 cuts a battle after 101 steps
    walls_cause_death: bool = True
    see_enemy_actions: bool = True
    won_battle_bonus: float = 1.0
    enemy_shoots: bool = True
    enemy_targets: Literal["closest", "random"] = "closest"
    observation: Literal["unit_list", "conic"] = "unit_list"
    state: bool = True  # the global state: all units, one after another


class SmaxEnvironment(Environment):
    """E battles of one scenario, stepped by JAX; compiled at the first `reset` and at the first `step`."""

    def __init__(
        self,
        env_id: str,
        options: SmaxOptions,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.num_envs = num_envs
        self.device = torch.device(device)
        self._dtype = dtype
        scenario = env_id.removeprefix("smax_")
        self._battles = _load(scenario, options)
        self.spec = describe(env_id, options)
        self._block = -(-num_envs // _BLOCKS)
        self._field: Battlefield | None = None

    def reset(self, seed: int) -> Frame:
        """Start a new battle in every copy; the same seed gives the same battles, however many copies."""
        seeds = [stream_seed(seed, "smax", copy) for copy in range(self.num_envs)]
        keys = np.array([(one >> 32, one & 0xFFFFFFFF) for one in seeds], np.uint32)  # [E, 2]
        field, view = self._battles.empty(self.num_envs)
        self._field, view = self._begin(field, view, keys, np.arange(self.num_envs))
        return self._frame(view)

    def step(self, action: Tensor) -> Step:
        """Advance every copy by one joint choice [E, N]; a choice that is not legal does nothing.

        Raises `UsageError` before the first `reset`, for another shape and for choices that do not exist.
        """
        if self._field is None:
            raise UsageError("call reset before step")
        expected = (self.num_envs, self.spec.n_agents)
        if action.shape != expected:
            raise UsageError(f"{self.spec.id}: actions have shape {tuple(action.shape)}, expected {expected}")
        low, high = torch.aminmax(action)
        if low < 0 or high >= self.spec.action_dim:
            raise UsageError(
                f"{self.spec.id}: actions from {low} to {high}, expected 0 to {self.spec.action_dim - 1}"
            )
        choices = action.to("cpu", torch.int32).numpy()
        field, view, outcome, next_keys = self._battles.step(self._field, choices)
        successor = frame = self._frame(view)
        ended = np.flatnonzero(outcome.done)
        if len(ended):
            field, view = self._begin(field, view, np.asarray(next_keys), ended)
            frame = self._frame(view)
        self._field = field
        paid, damage = self._tensor(outcome.team_reward), self._tensor(outcome.damage)  # [E], [E, N]
        terminated = self._tensor(outcome.terminated)
        return Step(
            frame=frame,
            successor=successor,
            team_reward=paid,
            agent_reward=damage + (paid - damage.sum(1)).unsqueeze(1) / self.spec.n_agents,
            terminated=terminated,
            truncated=self._tensor(outcome.done) & ~terminated,
            won=self._tensor(outcome.won),
        )

    def _begin(
        self, field: "Battlefield", view: "View", keys: np.ndarray, copies: np.ndarray
    ) -> "tuple[Battlefield, View]":
        """New battles in `copies`, block by block, so that one compiled function serves any number."""
        for first in range(0, len(copies), self._block):
            some = copies[first : first + self._block]
            chosen = np.full(self._block, self.num_envs)  # out of range: ignored
            chosen[: len(some)] = some
            field, view = self._battles.begin(field, view, keys[chosen % self.num_envs], chosen)
        return field, view

    def _frame(self, view: "View") -> Frame:
        return Frame(
            obs=self._tensor(view.obs),
            state=self._tensor(view.state) if self.spec.state_names else None,
            legal=self._tensor(view.legal),
            alive=self._tensor(view.alive),
            position=self._tensor(view.position),
        )

    def _tensor(self, array: Any) -> Tensor:
        """A view of JAX's array, which nobody writes to again."""
        tensor = torch.from_dlpack(array).to(self.device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def describe(env_id: str, options: SmaxOptions) -> EnvSpec:
    """The spec of a scenario, without touching JAX."""
    n_allies, n_enemies = SCENARIOS[env_id.removeprefix("smax_")]
    allies = tuple(f"ally_{i}" for i in range(n_allies))
    units = allies + tuple(f"enemy_{j}" for j in range(n_enemies))
    state_names = tuple(
        [f"{unit}.{name}" for unit in units for name in (*_OF_SELF, *_TYPE_BITS)]
        + [f"{unit}.{name}" for name in ("team", "type") for unit in units]
    )
    owner = {ally: i for i, ally in enumerate(allies)}
    return EnvSpec(
        id=env_id,
        options=asdict(options),
        agents=allies,
        groups=(allies,),  # all observe alike, and their own type among the rest
        action_type="discrete",
        obs_names=tuple(_obs_names(ally, units, options) for ally in allies),
        action_names=((*MOVES, *(f"attack_enemy_{j}" for j in range(n_enemies))),) * n_allies,
        state_names=state_names if options.state else (),
        state_owner=tuple(owner.get(name.partition(".")[0], -1) for name in state_names)
        if options.state
        else (),
        horizon=options.horizon,
        versions={name: version(name) for name in ("jaxmarl", "jax")},
    )


def _obs_names(viewer: str, units: Iterable[str], options: SmaxOptions) -> tuple[str, ...]:
    """Other units (or what the sectors show), then the viewer itself."""
    if options.observation == "conic":
        shown = [f"sector_{s}.unit_{k}" for s in range(_SECTORS) for k in range(_SHOWN)]
    else:
        shown = [unit for unit in units if unit != viewer]
    others = [f"{unit}.{name}" for unit in shown for name in (*_OF_OTHERS, *_TYPE_BITS)]
    return (*others, *_OF_SELF, *_TYPE_BITS)


def _load(scenario: str, options: SmaxOptions) -> "Battles":
    """The compiled rules. Raises `UsageError` where jaxmarl is not installed."""
    try:
        from offmarl.envs.smax_battle import battles
    except ImportError as error:
        raise UsageError(
            f'smax_{scenario} needs jaxmarl, which cannot be imported ({error}): pip install "offmarl[smax]"'
        ) from error
    return battles(
        scenario,
        max_steps=options.horizon - 1,
        walls_cause_death=options.walls_cause_death,
        see_enemy_actions=options.see_enemy_actions,
        won_battle_bonus=options.won_battle_bonus,
        enemy_shoots=options.enemy_shoots,
        attack_mode=options.enemy_targets,
        observation_type=options.observation,
    )
