"""The measured cells of a benchmark as a study, read from its folder without its recipe."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ValidationError

from offmarl.errors import DataError, UsageError
from offmarl.evaluation.ope.offline import PREFIX
from offmarl.evaluation.ope.ranking import Candidate
from offmarl.recipes.bench import CELLS, bench_folder, data_settings
from offmarl.recipes.recipe import CellSettings, CollectStage, algorithm_of, select
from offmarl.report.selection import Selection
from offmarl.report.study import SAME_DATA, Measured, Study, flat, make_study
from offmarl.stored_json import read_object
from offmarl.training.loop import TrainConfig

IGNORED = {"seed", "seeds"}  # of a stage: what the seeds are, not what is compared


class _Stored(BaseModel):
    """What a cell's file must say."""

    recipe: str
    cell: str
    coordinates: dict[str, str]
    values: dict[str, list[float]]
    error: str | None
    settings: CellSettings
    details: dict[str, Any] = {}


@dataclass(frozen=True)
class Bench:
    """The folder of a benchmark and its cells that were measured."""

    folder: Path
    cells: list[_Stored]
    failed: int


def find_bench(name: str) -> Path | None:
    """The folder of a benchmark: a path to it, or the name of a recipe that ran under $OFFMARL_HOME."""
    for folder in (Path(name).expanduser(), bench_folder(name)):
        if (folder / CELLS).is_dir():
            return folder
    return None


def study_of_bench(folder: Path, metric: str | None = None, only: Sequence[str] = ()) -> Study:
    """Read every cell in `folder`, or those that `only` keeps, and compare them.

    Raises `DataError` for a file that is no cell, `UsageError` for a wrong `only` and where nothing is measured.
    """
    bench = _read(folder, only)
    if not bench.cells:
        raise UsageError(f"{folder}: no cell is measured yet: run offmarl bench")
    failed = f"{bench.failed} cell{'s' if bench.failed > 1 else ''} failed"
    notes = [f"left out: {failed}"] if bench.failed else []
    replicated = _several_datasets(bench.cells)
    trained = max(_trained(cell) for cell in bench.cells)
    if replicated and trained > 1:
        notes.append(
            f"a seed is a dataset of its own: the mean of the {trained} policies trained on it, which are not "
            "independent of each other"
        )
    if not replicated and any(cell.settings.train is not None for cell in bench.cells):
        notes.append(SAME_DATA)
    measured = [_measured(cell, replicated) for cell in bench.cells]
    return make_study(bench.cells[0].recipe, measured, metric, notes)


def _read(folder: Path, only: Sequence[str]) -> Bench:
    stored = []
    for path in sorted((folder / CELLS).glob("*.json")):
        try:
            stored.append(_Stored.model_validate(read_object(path, "benchmark", "measured cell")))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise DataError(f"{path} is no measured cell: field '{where}': {problem['msg']}") from error
    kept = select(stored, only)
    return Bench(folder, [cell for cell in kept if not cell.error], sum(bool(cell.error) for cell in kept))


def _several_datasets(cells: Sequence[_Stored]) -> bool:
    """Whether the same data was collected with several seeds: then these are what is independent."""
    collected: dict[str, set[str]] = {}
    for cell in cells:
        collect = cell.settings.collect
        if collect is not None:
            task = json.dumps(_task(collect, cell.coordinates["seed"]), sort_keys=True)
            collected.setdefault(task, set()).add(collect.model_dump_json())
    return any(len(datasets) > 1 for datasets in collected.values())


def _trained(cell: _Stored) -> int:
    return 1 if cell.settings.train is None else cell.settings.train.seeds


def _measured(cell: _Stored, replicated: bool) -> Measured:
    settings, trained = cell.settings, _trained(cell)
    train, decompose = settings.train, settings.decompose
    values = {name: numbers for name, numbers in cell.values.items() if len(numbers) == trained}
    if replicated:  # one value a dataset
        values = {name: [fmean(numbers)] for name, numbers in values.items()}
        seeds: tuple[str, ...] = (cell.coordinates["seed"],)
    else:
        fitted = train or decompose or settings.online
        assert fitted is not None, "CellSettings see to it"
        seeds = tuple(str((fitted.seed or 0) + index) for index in range(trained))
    if train is not None:
        learner = train.learner
    elif settings.online is not None:
        learner = algorithm_of(settings.online)
    else:
        assert decompose is not None, "CellSettings see to it"
        learner = decompose.method
    episodes = cell.details.get("episodes")
    compared = settings.model_dump(
        mode="json",
        include={"decompose", "train", "online", "evaluate", "play"},
        exclude={
            "decompose": IGNORED,
            "train": {*IGNORED, "learner", "rewards"},
            "online": {"seed": True, "env": True, "options": True, "behaviour": {"algorithm"}},
            "evaluate": IGNORED,
            "play": {*IGNORED, "against", "agents"},
        },
        exclude_none=True,
    )
    behaviour = cell.values.get("behaviour")
    return Measured(
        source=cell.cell,
        env=_env(settings),
        task=_task_of(settings, cell.coordinates["seed"]),
        learner=learner,
        rewards=None if train is None else train.rewards,
        settings=compared,
        values=values,
        seeds=seeds,
        episodes=episodes * trained if replicated and episodes else episodes,
        steps=None if train is None else train.loop.get("steps", TrainConfig().steps),
        behaviour={"score": behaviour[0]} if behaviour else {},
    )


def _env(settings: CellSettings) -> str:
    stage = settings.collect or settings.online
    return str(settings.dataset) if stage is None else stage.env


def _task_of(settings: CellSettings, seed: str) -> dict[str, Any]:
    """What was learnt from or in, and in games against whom."""
    if settings.collect is not None:
        task = _task(settings.collect, seed)
    elif settings.online is not None:
        task = {"": f"{settings.online.env}/online", **flat(settings.online.options)}
    else:
        task = {"": settings.dataset}
    if settings.play is not None:
        task |= {"against": settings.play.against, "play.agents": settings.play.agents}
    return task


def _task(collect: CollectStage, seed: str) -> dict[str, Any]:
    """Name the data by its task and quality, and by what is unusual about it; what is a seed does not count."""
    name = f"{collect.env}/{collect.quality}"
    if collect.free_riders:
        name += f" with {collect.free_riders} free riders"
    return {"": name, **data_settings(collect, seed, {"env", "quality", "free_riders"})}


def candidates_of_bench(folder: Path, only: Sequence[str] = ()) -> Selection:
    """The cells of `folder` as policies to choose among, by the estimates that stand in them.

    Raises like `study_of_bench`, and `UsageError` where no cell holds an estimate.
    """
    cells = _read(folder, only).cells
    estimated = [cell for cell in cells if any(name.startswith(PREFIX) for name in cell.values)]
    if not estimated:
        raise UsageError(
            f"{folder}: no measured cell holds estimates; have them made by `ope: {{}}` in the recipe's stage evaluate"
        )
    several = _several_datasets(estimated)
    candidates = []
    for cell in estimated:
        collect, seed = cell.settings.collect, cell.coordinates["seed"]
        data = str(cell.settings.dataset) if collect is None else str(_task(collect, seed)[""])
        candidates.append(
            Candidate(
                name=cell.cell.rpartition("-")[0],
                data=f"{data}, seed {seed}" if several else data,
                estimates={
                    name.removeprefix(PREFIX): fmean(numbers)
                    for name, numbers in cell.values.items()
                    if name.startswith(PREFIX) and name != f"{PREFIX}coverage"
                },
                true_return=fmean(cell.values["return"]) if cell.values.get("return") else None,
            )
        )
    return Selection(f"Policies chosen by their data: {estimated[0].recipe}", tuple(candidates))
