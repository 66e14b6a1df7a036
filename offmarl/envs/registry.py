"""Environments by name."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch

from offmarl.envs.base import Environment, Policy
from offmarl.envs.gymnasium_build import LBF, RWARE
from offmarl.envs.gymnasium_build import options_of as options_of_gymnasium
from offmarl.envs.opponents.policy import Opponent, refuse_opponent
from offmarl.envs.options import read_options
from offmarl.envs.smac import MAPS, SMACV2
from offmarl.envs.smac import options_of as options_of_smac
from offmarl.envs.smax import SCENARIOS, SmaxOptions
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


def _smax(scenario: str) -> EnvEntry:
    allies, enemies = SCENARIOS[scenario]
    title = f"battle of {allies} units against {enemies}"
    factory = "offmarl.envs.smax:SmaxEnvironment"
    return EnvEntry(f"smax_{scenario}", title, "discrete", allies, "jaxmarl", "smax", factory=factory)


def _magent(name: str, title: str, agents: int) -> EnvEntry:
    return EnvEntry(name, title, "discrete", agents, "magent2", "magent", backend="magent")


def _foraging(env_id: str) -> EnvEntry | None:
    match = LBF.fullmatch(env_id)
    if match is None:
        return None
    players, foods = int(match["players"]), int(match["foods"])
    title = f"{players} players collect {foods} foods by their levels"
    return EnvEntry(env_id, title, "discrete", players, "lbforaging", "foraging", backend="gymnasium")


def _warehouse(env_id: str) -> EnvEntry | None:
    match = RWARE.fullmatch(env_id)
    if match is None:
        return None
    agents, title = int(match["agents"]), f"robots bring shelves in a {match['size']} warehouse"
    return EnvEntry(env_id, title, "discrete", agents, "rware", "warehouse", backend="gymnasium")


def _smac(env_id: str) -> EnvEntry | None:
    scenario = env_id.removeprefix("smac_")
    if match := SMACV2.fullmatch(env_id):
        allies, enemies = int(match["allies"]), int(match["enemies"])
        title = f"StarCraft II, {allies} {match['race']} units drawn anew against {enemies}"
    elif env_id.startswith("smac_") and scenario in MAPS:
        allies, enemies = MAPS[scenario]
        title = f"StarCraft II, {allies} units against {enemies}"
    else:
        return None
    return EnvEntry(env_id, title, "discrete", allies, "smacv2", "the game StarCraft II", backend="smac")


_FAMILIES: list[Callable[[str], EnvEntry | None]] = [_foraging, _warehouse, _smac]  # ids of a pattern
_EXAMPLES = [  # of the families: those that benchmarks use
    *(f"lbf_{name}" for name in ("8x8_2p_2f", "10x10_3p_3f", "15x15_3p_5f", "15x15_4p_3f", "15x15_4p_5f")),
    *(f"rware_{name}" for name in ("tiny_2ag", "tiny_4ag", "small_4ag", "tiny_4ag_hard")),
    *(f"smac_{name}" for name in MAPS),
    *(
        f"smacv2_{race}_{sides}"
        for race in ("terran", "protoss", "zerg")
        for sides in ("5_vs_5", "10_vs_10", "10_vs_11", "20_vs_20", "20_vs_23")
    ),
]


def _member(env_id: str) -> EnvEntry | None:
    """The entry of an id that follows a family's pattern."""
    return next((entry for family in _FAMILIES if (entry := family(env_id)) is not None), None)


_ENTRIES = [
    _particle("mpe_spread", "cover the landmarks", 3, "mpe2 simple_spread_v3", "spread:Spread"),
    _particle("mpe_tag", "predators share every catch", 3, "mpe2 simple_tag_v3", "tag:Tag"),
    _particle("mpe_spread_omar", "cooperative navigation of the papers", 3, "OMAR (CN)", "spread:SpreadOmar"),
    _particle("mpe_tag_omar", "predator-prey of the papers", 3, "OMAR (PP)", "tag:TagOmar"),
    _particle("mpe_world_omar", "predator-prey with food and forests", 3, "OMAR (WORLD)", "forest:Forest"),
    _particle(
        "mpe_tag_individual", "each predator is paid for its own catch", 3, "offmarl", "tag:TagIndividual"
    ),
    _particle(
        "mpe_predator_prey_large",
        "many predators, prey and obstacles",
        20,
        "CMFQ (appendix)",
        "predator_prey:PredatorPreyLarge",
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
    *(_smax(scenario) for scenario in SCENARIOS),
    _magent("magent_battle", "two armies of up to hundreds of agents", 64),
    _magent("magent_pursuit", "predators tag faster prey among walls", 20),
    _magent("magent_gather", "agents compete for food, and can kill for it", 495),
    *(entry for example in _EXAMPLES if (entry := _member(example)) is not None),
]
_BY_ID = {entry.id: entry for entry in _ENTRIES}
_BACKENDS = ("offmarl", "pettingzoo", "gymnasium", "smac", "magent")
_OF_ANY_MODULE = ("pettingzoo", "gymnasium")  # these take a module after a colon


def listing() -> list[EnvEntry]:
    """The environments that have an id, of families their best-known members; see `make` for others."""
    return list(_ENTRIES)


def describe(env_id: str) -> EnvEntry:
    """The entry of `env_id`. Raises `UsageError` with near names where there is none."""
    entry = _BY_ID.get(env_id) or _member(env_id)
    if entry is None:
        raise unknown_name("environment", env_id, _BY_ID)
    return entry


def default_options(env_id: str) -> dict[str, Any]:
    """Every option of `env_id` with its default. Raises `UsageError` where there is no such environment."""
    return asdict(_options_class(describe(env_id))())


def _options_class(entry: EnvEntry) -> type[Any]:
    """The dataclass that declares the options of an environment under its own backend."""
    if entry.backend == "pettingzoo":
        from offmarl.envs.mpe2 import MPE2_TASKS

        return MPE2_TASKS[entry.id].options_class
    if entry.backend == "gymnasium":
        return options_of_gymnasium(entry.id)
    if entry.backend == "smac":
        return options_of_smac(entry.id)
    if entry.backend == "magent":
        from offmarl.envs.magent import OPTIONS

        return OPTIONS[entry.id]
    if entry.id.startswith("scm_"):
        from offmarl.envs.scm import options_of

        return options_of(entry.id)
    if entry.id.startswith("smax_"):
        return SmaxOptions
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
    opponent: Opponent | Policy | None = None,
    workers: int | None = None,
) -> Environment:
    """E = `num_envs` copies of an environment.

    `backend` is `offmarl` (the environment's own, for most batched tensors on `device`), `pettingzoo` (the
    original package behind an id, in worker processes), `pettingzoo:module.path`, whose
    `parallel_env(**options)` is used under any id, or `gymnasium:module:Environment`, an environment of
    Gymnasium's multi-agent convention, likewise.
    `opponent` replaces the policy of background agents (observations [E, P, O] to forces [E, P, 2]; in the MAgent
    tasks to choices [E, P], or a `Policy` that is shown what that side sees) and is not stored in the spec.
    `workers` is the number of processes of a backend that has some.
    `make(spec.id, backend=spec.backend, options=spec.options)` rebuilds an environment from its spec.
    Raises `UsageError` for an unknown environment, backend or option, or a value that cannot be.
    """
    if num_envs < 1:
        raise UsageError(f"{num_envs} copies of {env_id}: at least one is needed")
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} worker processes for {env_id}: at least one is needed")
    options = dict(options or {})
    name, _, target = backend.partition(":")
    if name not in _BACKENDS or (target and name not in _OF_ANY_MODULE):
        raise unknown_name(
            "backend", backend, [*_BACKENDS, "pettingzoo:module.path", "gymnasium:module:Class"]
        )
    if not target:
        own = describe(env_id).backend
        if name in ("gymnasium", "smac", "magent") and own != name:
            raise UsageError(f"{env_id} has no backend '{name}': leave it out, its own is '{own}'")
        name = own if name == "offmarl" else name
    if name == "magent":
        from offmarl.envs.magent import make_magent

        return make_magent(env_id, num_envs, options, device, dtype, opponent, workers)
    if isinstance(opponent, Policy):
        raise UsageError(f"{env_id}: an opponent must be a function of observations here, not a policy")
    if name == "gymnasium":
        from offmarl.envs.gymnasium_build import make_gymnasium

        return make_gymnasium(env_id, num_envs, target or None, options, device, dtype, opponent, workers)
    if name == "smac":
        from offmarl.envs.smac import make_smac

        return make_smac(env_id, num_envs, options, device, dtype, opponent, workers)
    if name == "pettingzoo":
        from offmarl.envs.pettingzoo_build import make_pettingzoo

        return make_pettingzoo(env_id, num_envs, target or None, options, device, dtype, opponent, workers)

    entry = describe(env_id)
    resolved = read_options(env_id, _options_class(entry), options)
    if not env_id.startswith(("scm_", "smax_")):
        from offmarl.envs.particle.build import build

        return build(_factory(entry), resolved, num_envs, device, dtype, opponent)
    refuse_opponent(env_id, opponent)
    environment: Environment = _factory(entry)(env_id, resolved, num_envs, device, dtype)
    return environment
