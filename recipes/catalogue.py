"""Measure the reference returns of every task and write the card of every dataset that can be collected.

`python recipes/catalogue.py [mpe_spread ...]` writes `datasets/references.json` and `datasets/cards/`. It trains
and collects for real, into $OFFMARL_HOME, and goes on where it was if it was interrupted.
"""

import sys
from pathlib import Path

import torch

from offmarl.atomic import write_json
from offmarl.behaviour.collection import CollectRequest, collect_dataset, default_id
from offmarl.behaviour.qualities import QUALITIES, TaskKey, reference_episodes, trained_behaviour
from offmarl.behaviour.tuning import behaviour_config
from offmarl.console import Terminal
from offmarl.data.catalog import catalogue_folder, datasets_folder, save_reference
from offmarl.data.store import Dataset
from offmarl.envs.registry import listing

FREE_RIDERS = {"mpe_targets": 4, "mpe_tag_individual": 2}
TRUE_OF_ANY_MACHINE = ("command", "quality", "free_riders", "exploration", "seed", "versions")


def requests(env_id: str) -> list[CollectRequest]:
    """Every dataset of a task, each by the command that a user would type."""
    qualities = [quality for quality in QUALITIES if quality != "scripted"]
    if env_id.startswith("scm_"):
        qualities = ["random"]  # the yardstick for decomposition: what matters is coverage
    asked = []
    for quality in qualities:
        flag = "" if quality == "expert" else f" --quality {quality}"
        command = f"offmarl collect --env {env_id}{flag}"
        asked.append(CollectRequest(env=env_id, quality=quality, command=command))
    if env_id in FREE_RIDERS:
        count = FREE_RIDERS[env_id]
        command = f"offmarl collect --env {env_id} --free-riders {count}"
        asked.append(CollectRequest(env=env_id, free_riders=count, command=command))
    return asked


def measure_references(env_id: str, terminal: Terminal) -> None:
    """Random and expert returns of a task with its default options, into the catalogue."""
    task = TaskKey(env_id, "offmarl", {}, "cpu")
    spec = task.describe()
    trained = trained_behaviour(task, behaviour_config(spec, {}), seed=0, reporter=terminal)
    command = f"python recipes/catalogue.py {env_id}"
    save_reference(spec, trained.random_return, trained.expert_return, reference_episodes(spec), command)


def write_card(request: CollectRequest, dataset: Dataset) -> Path:
    """What somebody will get who types the command, without what is particular to this machine."""
    card = dataset.card
    path = catalogue_folder() / "cards" / f"{card.id}.json"
    content = {
        "id": card.id,
        "command": request.command,
        "env": card.env.model_dump(mode="json"),
        "transitions": card.transitions,
        "episodes": card.episodes,
        "arrays": {name: array.model_dump(mode="json") for name, array in card.arrays.items()},
        "annotations": sorted(card.annotations),
        "bytes": card.bytes,
        "statistics": card.statistics,
        "references": card.references,
        "provenance": {
            name: card.provenance[name] for name in TRUE_OF_ANY_MACHINE if name in card.provenance
        },
    }
    write_json(path, content)
    return path


def main() -> None:
    """Go through the tasks named on the command line, or all of them."""
    torch.set_num_threads(1)
    terminal = Terminal()
    for env_id in sys.argv[1:] or [entry.id for entry in listing()]:
        measure_references(env_id, terminal)
        for request in requests(env_id):
            folder = datasets_folder() / default_id(request)
            dataset = Dataset.open(folder) if folder.exists() else collect_dataset(request, terminal)
            terminal.line(
                f"{write_card(request, dataset)}: return {dataset.card.statistics['return']['mean']:.1f}"
            )


if __name__ == "__main__":
    main()
