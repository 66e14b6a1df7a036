"""Who and what stands where in an episode: agents from their positions, everything else from what is told of it.

Shapes: T frames, N agents, M bodies (agents first), O observation, D state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from offmarl.envs.base import EnvSpec
from offmarl.envs.particle.environment import ParticleEnvironment
from offmarl.envs.particle.world import Entity
from offmarl.envs.registry import describe, make
from offmarl.errors import OffmarlError

PARTICLE = "offmarl.envs.particle"
KINDS = ("prey", "landmark", "target", "obstacle", "food", "forest", "enemy")
RADII = {"agent": 0.02, "forest": 0.07, "obstacle": 0.05}  # shares of the world where the task tells no sizes
OTHER_RADIUS = 0.015
PLACES = ("position_{}", "{}")  # how a state names where a body is
SAME_PLACE = 1e-3  # share of the world within which two accounts of a body agree
ORDER = ("forest", "obstacle", "landmark", "target", "food", "other", "agent", "enemy", "prey")  # last on top


@dataclass(frozen=True)
class Body:
    """A disc to draw."""

    name: str
    kind: str  # agent, prey, landmark, obstacle, food, forest, enemy or other
    radius: float  # in units of the world
    owner: int | None = None  # the agent to whom alone it matters, where several bodies share a name


@dataclass(frozen=True)
class Scene:
    """Where everything is in every frame of an episode."""

    bodies: tuple[Body, ...]  # M, the N agents first
    position: np.ndarray  # [T, M, 2], NaN where a body is dead or nobody tells where it is

    @property
    def limits(self) -> list[float]:
        """Left, right, bottom, top of the smallest square around all that is ever drawn, with a margin."""
        radius = np.array([body.radius for body in self.bodies])[None, :, None]
        low = np.nanmin(self.position - radius, axis=(0, 1))
        high = np.nanmax(self.position + radius, axis=(0, 1))
        middle, half = (low + high) / 2, max(float((high - low).max()), 1e-6) * 0.52
        limits: list[float] = np.stack([middle - half, middle + half], 1).flatten().tolist()
        return limits

    def order(self) -> list[int]:
        """Bodies from those that lie lowest to those on top: what is chased is small, and would be hidden."""
        return sorted(range(len(self.bodies)), key=lambda body: ORDER.index(self.bodies[body].kind))


def scene_of(
    spec: EnvSpec,
    position: np.ndarray | None,
    obs: np.ndarray | None,
    state: np.ndarray | None = None,
    alive: np.ndarray | None = None,
) -> Scene | None:
    """Put together a scene from the agents' positions [T, N, 2], what they observe [T, N, O] and the state [T, D].

    Other bodies, and the agents where they have no `position`, are found by name: `X.position_x` and
    `X.position_y` (or `X.x` and `X.y`) of the state, other bodies else by `X.relative_x` and `X.relative_y` of what
    an agent observes. Units in which the agents themselves are not where they are said to be are translated
    (state) or left out (observations). The dead (`alive` [T, N], no health) are nowhere. None where nobody tells
    where the agents are.
    """
    if position is None and state is not None:
        position = _agents_of_state(spec, state)
    if position is None or not np.isfinite(position).any():
        return None
    agents = position.astype(np.float64)
    if alive is not None:
        agents = np.where(alive[..., None], agents, np.nan)
    extent = _extent(agents)
    others = _of_state(spec, agents, state) if state is not None and spec.state_names else {}
    if not others and obs is not None:
        others = _of_observations(spec, agents, obs, extent)
    entities = {entity.name: entity for entity in _entities(spec)}
    known = [_body(spec, entities, name, index, extent) for index, name in enumerate(spec.agents)]
    known = [replace(body, kind="agent") for body in known]
    for name, viewer in others:
        body = _body(spec, entities, name, viewer, extent)
        shared = sum(other == name for other, _ in others) == 1
        own = replace(body, name=f"{spec.agents[viewer]}'s {name}", owner=viewer)
        known.append(body if shared else own)
    return Scene(tuple(known), np.concatenate([agents, *(path[:, None] for path in others.values())], axis=1))


def _agents_of_state(spec: EnvSpec, state: np.ndarray) -> np.ndarray | None:
    """Where the state says that the agents are, [T, N, 2]; None where it does not."""
    found = _pairs(spec.state_names, PLACES)
    if not all(name in found for name in spec.agents):
        return None
    return np.stack([_living(spec, state, name, found[name]) for name in spec.agents], 1)


def _living(spec: EnvSpec, state: np.ndarray, name: str, pair: list[int]) -> np.ndarray:
    """Where the state says that a body is, [T, 2], NaN where it has no health left."""
    path = state[:, pair].astype(np.float64)
    if f"{name}.health" in spec.state_names:
        path[state[:, spec.state_names.index(f"{name}.health")] <= 0] = np.nan
    return path


def _of_state(spec: EnvSpec, agents: np.ndarray, state: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
    """Bodies that the state names, [T, 2] each, in the units of `agents`."""
    found = _pairs(spec.state_names, PLACES)
    told = [(k, found[name]) for k, name in enumerate(spec.agents) if name in found]
    scale, offset = np.ones(2), np.zeros(2)
    for axis in range(2):
        if not told:
            break
        x = np.concatenate([state[:, pair[axis]] for _, pair in told]).astype(np.float64)
        y = np.concatenate([agents[:, k, axis] for k, _ in told])
        seen = np.isfinite(y)
        if seen.sum() > 1 and x[seen].std() > 0:
            scale[axis], offset[axis] = np.polyfit(x[seen], y[seen], 1)
    others = {}
    for name, pair in found.items():
        if name in spec.agents:
            continue
        path = _living(spec, state, name, pair) * scale + offset
        others[name, -1] = path
    return others


def _of_observations(
    spec: EnvSpec, agents: np.ndarray, obs: np.ndarray, extent: float
) -> dict[tuple[str, int], np.ndarray]:
    """Bodies that agents see at some distance from themselves, [T, 2] each.

    One that several agents see in the same place is one body; in different places it is each agent's own.
    """
    paths: dict[str, dict[int, np.ndarray]] = {}
    for viewer, names in enumerate(spec.obs_names):
        for name, pair in _pairs(names, ("relative_{}",)).items():
            offset = obs[:, viewer, pair].astype(np.float64)
            offset[(offset == 0).all(axis=1)] = np.nan  # not seen
            paths.setdefault(name, {})[viewer] = agents[:, viewer] + offset
    for index, name in enumerate(spec.agents):
        for path in paths.pop(name, {}).values():
            if not _together(path, agents[:, index], extent):
                return {}  # offsets are not in the units of positions
    others = {}
    for name, seen in paths.items():
        first = next(iter(seen.values()))
        if all(_together(first, path, extent) for path in seen.values()):
            stacked = np.stack(list(seen.values()))  # [viewers, T, 2]
            hidden = np.isnan(stacked)
            total = np.where(hidden, 0.0, stacked).sum(0)
            others[name, -1] = np.where(hidden.all(0), np.nan, total / np.maximum((~hidden).sum(0), 1))
        else:
            others |= {(name, viewer): path for viewer, path in seen.items()}
    return others


def _together(a: np.ndarray, b: np.ndarray, extent: float) -> bool:
    """Whether two paths [T, 2] are the same wherever both are known."""
    apart = np.abs(a - b)
    return not bool((apart[np.isfinite(apart)] > SAME_PLACE * extent).any())


def _pairs(names: Sequence[str], quantities: Sequence[str]) -> dict[str, list[int]]:
    """Columns of x and y of every body of which `names` has both, under one of the names `quantities`."""
    column = {name: index for index, name in enumerate(names)}
    found: dict[str, list[int]] = {}
    for quantity in quantities:
        for name in names:
            body, _, last = name.rpartition(".")
            other = f"{body}.{quantity.format('y')}"
            if body and last == quantity.format("x") and other in column:
                found.setdefault(body, [column[name], column[other]])
    return found


def _extent(position: np.ndarray) -> float:
    """How wide the world is."""
    if not np.isfinite(position).any():
        return 1.0
    return float(max(np.nanmax(position, axis=(0, 1)) - np.nanmin(position, axis=(0, 1)))) or 1.0


def _body(spec: EnvSpec, entities: dict[str, Entity], name: str, viewer: int, extent: float) -> Body:
    """What is known of a body: the task's own account, else what its name says."""
    entity = entities.get(name) or entities.get(f"{name}_{viewer}")
    if entity is not None:
        return Body(name, entity.kind if entity.kind in ORDER else "other", entity.size)
    chased = "prey" if spec.id.startswith("mpe_") else "enemy"
    kind = next((kind for kind in KINDS if kind in name), chased if name in spec.background else "other")
    role = "agent" if name in spec.agents else kind
    return Body(name, kind, RADII.get(role, OTHER_RADIUS) * extent)


def _entities(spec: EnvSpec) -> tuple[Entity, ...]:
    """The discs of a particle task; none of other tasks, which do not tell."""
    try:
        if spec.backend != "offmarl" or not describe(spec.id).factory.startswith(PARTICLE):
            return ()
        env = make(spec.id, backend=spec.backend, options=spec.options)
    except OffmarlError:
        return ()  # made by another version: sizes are guessed
    return env.entities if isinstance(env, ParticleEnvironment) else ()
