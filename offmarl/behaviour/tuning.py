"""How each task is trained online, where the defaults of `OnlineConfig` are not what it needs."""

from collections.abc import Mapping
from typing import Any

from offmarl.behaviour.online import OnlineConfig
from offmarl.behaviour.schedule import Schedule
from offmarl.behaviour.self_play import self_play_config
from offmarl.envs.base import EnvSpec
from offmarl.settings import configure

# Measured learning curves (seed 0): the return has levelled off at these steps.
TUNED: dict[str, dict[str, Any]] = {
    "mpe_spread": {"steps": 6_000},
    "mpe_spread_omar": {"steps": 7_000},  # 502 at 4,500, 553 at 7,000; the published expert data: 516.8
    "mpe_targets": {"steps": 1_000},  # eight independent errands: 200 of 202 at 600
    # A thousand steps a second in worker processes, so few copies and few, short evaluations.
    "mpe_world": {"steps": 1_500, "num_envs": 32, "checkpoint_every": 250, "evaluation_episodes": 32},
    # 0.46 a predator and step at 800, of prey that move at random; there is nobody to beat, so returns decide.
    "magent_pursuit": {
        "steps": 800,
        "exploration_steps": 300,
        "checkpoint_every": 200,
        "evaluation_episodes": 4,
    },
}

# Battles, by QMIX. Measured on smax_3m (seed 0): 0.82 of the battles won at step 2,000, 0.92 at 6,000, two and a half
# minutes of one core. With 128 copies, layers of 64 or observations as they are it takes longer to get there.
BATTLES: dict[str, Any] = {
    "steps": 6_000,
    "checkpoint_every": 250,
    "warm_up": 50,
    "exploration": 0.05,  # PyMARL (Samvelyan et al. 2019)
    "exploration_steps": 500,
    "normalise_observations": True,
    "hidden": (128, 128),
    "learning_rate": 1e-3,
    "gamma": 0.99,  # PyMARL
    "batch_rows": 1_536,
    "capacity": 300_000,  # rows are wide: 300 MB
}

# Every copy is a process of the game: 192 at once, as elsewhere, are more than a machine holds.
GAMES: dict[str, Any] = {"num_envs": 8, "evaluation_episodes": 8}


def tuned(spec: EnvSpec) -> dict[str, Any]:
    """Settings that a task needs, most of them measured; empty where none are known."""
    if spec.backend == "smac":
        return GAMES
    return BATTLES if spec.id.startswith("smax_") else TUNED.get(spec.id, {})


def behaviour_config(spec: EnvSpec, values: Mapping[str, Any]) -> Schedule:
    """How a task is trained online: `values` over what was measured for it over the defaults.

    `SelfPlayConfig` for rendered tasks, otherwise `OnlineConfig`. Raises `UsageError` as `configure` does.
    """
    chosen = {**tuned(spec), **values}
    return self_play_config(chosen) if spec.rendered else configure(OnlineConfig, chosen, "behaviour")
