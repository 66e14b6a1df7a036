"""Environments by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch

from offmarl.envs.base import Environment
from offmarl.envs.opponents.policy import Opponent
from offmarl.envs.options import read_options
from offmarl.errors import UsageError, unknown_name


@dataclass(frozen=True)
class EnvEntry:
    """An environment that `make` knows."""

    id: str
    title: str
    actions: str  # continuous, discrete or both
    agents: int  # by default
    source: str  # the paper or package that defines the task
    needs: str | None = None  # the extra to install, for example "magent"
    backend: str = "offmarl"  # the default one
    factory: str = ""  # module:class


def _particle(name: str, title: str, agents: int, source: str, factory: str) -> EnvEntry:
    return EnvEntry(
        name, title, "continuous or discrete", agents, source, factory=f"offmarl.envs.particle.{factory}"
    )


def _scm(name: str, title: str) -> EnvEntry:
    return EnvEntry(name, title, "continuous", 4, "synthetic", factory="offmarl.envs.scm:ScmEnvironment")


_ENTRIES = [
    _particle("mpe_spread", "cover the landmarks", 3, "mpe2 simple_spread_v3", "spread:Spread"),
    _particle("mpe_tag", "predators share every catch", 3, "mpe2 simple_tag_v3", "tag:Tag"),
    _particle("mpe_spread_omar", "cooperative navigation of the papers", 3, "OMAR (CN)", "spread:SpreadOmar"),
    _particle("mpe_tag_omar", "predator-prey of the papers", 3, "OMAR (PP)", "tag:TagOmar"),
    _particle("mpe_world_omar", "predator-prey with food and forests", 3, "OMAR (WORLD)", "forest:Forest"),
    _particle(
        "mpe_tag_individual", "each predator is paid for its own catch", 3, "offmarl", "tag:TagIndividual"
    ),
    _particle("mpe_targets", "each agent has a landmark of its own", 8, "offmarl", "targets:Targets"),
    EnvEntry(
        "mpe_world",
        "a leader tells predators where to hunt",
        "continuous or discrete",
        4,
        "mpe2 simple_world_comm_v3",
        backend="pettingzoo",
    ),
    _scm("scm_a", "rewards with disjoint causes"),
    _scm("scm_b1", "causes that overlap on global state"),
    _scm("scm_b2", "causes that overlap on a neighbour's state"),
    _scm("scm_c", "a term shared equally by all agents"),
    _scm("scm_c2", "a term shared unequally"),
    _scm("scm_d", "disjoint causes, correlated state"),
    _scm("scm_e", "disjoint causes, noisy team reward"),
    _scm("scm_nonlocal", "causes that are nobody's own state"),
]
_BY_ID = {entry.id: entry for entry in _ENTRIES}


def listing() -> list[EnvEntry]:
    """All environments that have an id; any PettingZoo module can be used besides, see `make`."""
    return list(_ENTRIES)


def describe(env_id: str) -> EnvEntry:
    """The entry of `env_id`. Raises `UsageError` with near names where there is none."""
    if env_id not in _BY_ID:
        raise unknown_name("environment", env_id, _BY_ID)
    return _BY_ID[env_id]


def default_options(env_id: str) -> dict[str, Any]:
    """Every option of `env_id` with its default. Raises `UsageError` where there is no such environment."""
    return asdict(_options_class(describe(env_id))())


def _options_class(entry: EnvEntry) -> type[Any]:
    """The dataclass that declares the options of an environment under its own backend."""
    if entry.backend == "pettingzoo":
        from offmarl.envs.mpe2 import MPE2_TASKS

        return MPE2_TASKS[entry.id].options_class
    if entry.id.startswith("scm_"):
        from offmarl.envs.scm import options_of

        return options_of(entry.id)
    declared: type[Any] = _factory(entry).options_class
    return declared


def _factory(entry: EnvEntry) -> Any:
    module, _, name = entry.factory.partition(":")
    return getattr(import_module(module), name)


def make(
    env_id: str,
    num_envs: int = 1,
    *,
    backend: str = "offmarl",
    options: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    opponent: Opponent | None = None,
    workers: int | None = None,
) -> Environment:
    """E = `num_envs` copies of an environment.

    `backend` is `offmarl` (batched tensors on `device`), `pettingzoo` (the original package behind an id, in
    worker processes) or `pettingzoo:module.path`, whose `parallel_env(**options)` is used under any id.
    `opponent` replaces the policy of background agents (observations [E, P, O] to forces [E, P, 2]) and is
    not stored in the spec. `workers` is the number of processes of a PettingZoo backend.
    `make(spec.id, backend=spec.backend, options=spec.options)` rebuilds an environment from its spec.
    Raises `UsageError` for an unknown environment, backend or option, or a value that cannot be.
    """
    if num_envs < 1:
        raise UsageError(f"{num_envs} copies of {env_id}: at least one is needed")
    options = dict(options or {})
    name, _, module = backend.partition(":")
    if name not in ("offmarl", "pettingzoo"):
        raise unknown_name("backend", name, ["offmarl", "pettingzoo", "pettingzoo:module.path"])
    if name == "pettingzoo" or (env_id in _BY_ID and _BY_ID[env_id].backend == "pettingzoo"):
        from offmarl.envs.pettingzoo_build import make_pettingzoo

        if not module:
            describe(env_id)
        return make_pettingzoo(env_id, num_envs, module or None, options, device, dtype, opponent, workers)

    entry = describe(env_id)
    resolved = read_options(env_id, _options_class(entry), options)
    if not env_id.startswith("scm_"):
        from offmarl.envs.particle.build import build

        return build(_factory(entry), resolved, num_envs, device, dtype, opponent)
    if opponent is not None:
        raise UsageError(f"{env_id}: every agent learns here, there is no opponent to replace")
    environment: Environment = _factory(entry)(env_id, resolved, num_envs, device, dtype)
    return environment
