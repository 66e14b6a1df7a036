"""Recipes so small that their cells take no time, and an engine that needs no processes."""

import json

from offmarl.recipes.engine import Finished, attempt
from offmarl.recipes.recipe import Recipe

HASTY = {"structure_steps": 20, "refit_steps": 20, "pruning_factors": []}
CREDIT = {
    "name": "tiny",
    "title": "Tiny",
    "seeds": 2,
    "blocks": {
        "scm": {
            "collect": {
                "quality": "random",
                "num_envs": 20,
                "options": {"agents": 2, "structure_seed": "$seed"},
            },
            "grid": {
                "collect.env": ["scm_a", "scm_c"],
                "collect.steps": [500],
                "method": {
                    "mean": {"decompose.method": "mean"},
                    "macca": {"decompose.method": "macca", "decompose.settings": HASTY},
                },
            },
        }
    },
    "tables": [
        {"title": "Skill", "rows": ["env", "steps"], "across": "method", "metrics": ["skill"]},
        {"title": "All", "rows": ["env", "method"], "metrics": ["pearson", "skill", "f1", "fallback"]},
    ],
}
POLICIES = {
    "name": "policies",
    "title": "Policies",
    "seeds": 1,
    "blocks": {
        "td3bc": {
            "collect": {
                "env": "mpe_targets",
                "quality": "random",
                "steps": 500,
                "num_envs": 20,
                "options": {"agents": 2},
            },
            "decompose": {"settings": HASTY},
            "train": {"learner": "td3bc", "seeds": 2, "loop": {"steps": 3, "batch_size": 32}},
            "evaluate": {"episodes": 4},
            "grid": {
                "sweep": {
                    "weak": {"train.settings.bc_weight": 0.4},
                    "strong": {"train.settings.bc_weight": 5},
                    "too many": {"train.loop.batch_size": 10_000},
                },
                "train.rewards": ["team", True, "macca"],
            },
        }
    },
    "tables": [
        {
            "title": "Best",
            "rows": ["env", "learner"],
            "across": "rewards",
            "metrics": ["return"],
            "best": {"over": ["sweep"], "metric": "return"},
        }
    ],
}


class Inline:
    """Does every job at once in this process; `broken` fails the jobs whose keys begin so."""

    slots = 1

    def __init__(self, broken: str | None = None) -> None:
        self.broken, self.keys, self._ended = broken, [], []

    def submit(self, key, work) -> None:
        self.keys.append(key)
        if self.broken is not None and key.startswith(self.broken):
            self._ended.append(Finished(key, 0.0, error="broken on purpose"))
        else:
            self._ended.append(attempt(key, work))

    def wait(self) -> list[Finished]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        pass


def recipe(content: dict, **changes) -> Recipe:
    return Recipe.model_validate(json.loads(json.dumps({**content, **changes})))


def changed(content: dict, path: str, value) -> dict:
    copy = json.loads(json.dumps(content))
    *parents, last = path.split("/")
    place = copy
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    place[last] = value
    return copy
