"""What the episodes of a dataset earned.

Shapes: E episodes, N agents.
"""

from typing import Any

import numpy as np

from offmarl.data.store import Dataset


def episode_statistics(dataset: Dataset) -> dict[str, Any]:
    """Summarise the episodes; `return` is the mean over agents, `team_return` their sum."""
    team: list[np.ndarray] = []
    agent: list[np.ndarray] = []
    for part in dataset.parts:
        first, last, start = part.first_row, part.first_row + part.rows, part.episode_start[:-1]
        rewards = dataset.read_numpy("team_reward", first, last).astype(np.float64)
        team.append(np.add.reduceat(rewards, start))
        if "agent_reward" in dataset.card.arrays:
            rewards = dataset.read_numpy("agent_reward", first, last).astype(np.float64)
            agent.append(np.add.reduceat(rewards, start, axis=0))
    team_return = np.concatenate(team)  # [E]
    steps = np.diff(dataset.episode_start.numpy()) - 1
    statistics: dict[str, Any] = {
        "return": _summary(team_return / dataset.spec.n_agents),
        "team_return": _summary(team_return),
        "length": _summary(steps),
    }
    if agent:
        statistics["agent_return_mean"] = np.concatenate(agent).mean(axis=0).tolist()
    return statistics


def _summary(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }
