"""A recipe: what it says in YAML, and the grid of cells that it stands for.

A recipe has *blocks*. A block fixes settings of the stages collect, decompose, train and evaluate, and spans a
*grid* of those that vary; every point of the grid, once for each seed, is a *cell*: one measurement, one file.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from offmarl.behaviour.self_play import SelfPlayConfig
from offmarl.credit.registry import DECOMPOSERS
from offmarl.credit.relabel import BUILT_IN
from offmarl.errors import UsageError, unknown_name
from offmarl.report.bench_tables import TableSpec
from offmarl.settings import Count, Natural, UpToOne, parse_yaml

SEED = "$seed"  # stands for the cell's seed wherever a setting may


def _absent(value: object) -> bool:
    return value is None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CollectStage(_Strict):
    """The data, as `offmarl collect` makes it."""

    env: str
    quality: str = "expert"
    steps: Count | None = None  # transitions; None: what collect takes by default
    options: dict[str, Any] = {}  # of the environment
    free_riders: Natural = 0
    behaviour: dict[str, Any] = {}
    num_envs: Count | None = None
    backend: str = "offmarl"
    seed: Natural | None = None  # None: the cell's


class DecomposeStage(_Strict):
    """The credit, as `offmarl decompose` gives it."""

    method: str = "macca"
    settings: dict[str, Any] = {}
    seed: Natural | None = None  # None: the cell's


class TrainStage(_Strict):
    """The policies, as `offmarl train` learns them."""

    learner: str
    rewards: str = "team"  # team, mean, true; anything else names a method, or the settings of `decompose`
    settings: dict[str, Any] = {}  # of the learner
    loop: dict[str, Any] = {}  # of the training loop: steps, batch_size, ...
    seeds: Count = 1  # trained at once, stacked
    seed: Natural | None = None  # the first of them; None: the cell's


class OpeStage(_Strict):
    """Estimates of the scores, as `offmarl evaluate --offline` makes them."""

    estimators: list[str] | None = None  # None: all that the data can answer
    settings: dict[str, Any] = {}
    seed: Natural = 0


class EvaluateStage(_Strict):
    """The scores, as `offmarl evaluate` takes them."""

    episodes: Count = 200  # for each trained seed
    options: dict[str, Any] = {}  # of the environment, where they differ from the data's
    seed: Natural | None = None  # None: the cell's
    # Estimate the return from the data too, as `offmarl evaluate --offline` does; None: no.
    ope: Annotated[OpeStage | None, Field(exclude_if=lambda ope: ope is None)] = None


class OnlineStage(_Strict):
    """Policies that learn by playing, as those that `offmarl collect` acts by."""

    env: str
    quality: Literal["medium", "expert"] = "expert"
    options: dict[str, Any] = {}  # of the environment
    behaviour: dict[str, Any] = {}  # algorithm and its settings
    seed: Natural | None = None  # None: the cell's


def algorithm_of(stage: OnlineStage) -> str:
    """What learns in games."""
    return str(stage.behaviour.get("algorithm", SelfPlayConfig.algorithm))


class PlayStage(_Strict):
    """Games against one opponent, as `offmarl tournament` has them played."""

    # random, charge, behaviour (what collected the data), or a learner: taught as the contestant was, by the same
    # seed, on the same task or data.
    against: str = "random"
    opponent: dict[str, Any] = {}  # settings of a learner that is the opponent: `behaviour` or `settings`
    agents: Count | None = None  # of the first side; None: as in training
    games: Annotated[int, Field(ge=2)] = 40
    epsilon: UpToOne = 0.05
    seed: Natural | None = None  # None: the cell's


class CellSettings(_Strict):
    """Everything that a cell's result depends on."""

    dataset: str | None = None  # an id or a path, in place of `collect`
    collect: CollectStage | None = None
    decompose: DecomposeStage | None = None
    train: TrainStage | None = None
    evaluate: EvaluateStage | None = None
    # Left out where they are not given, so that the cells of other recipes keep their names.
    online: Annotated[OnlineStage | None, Field(exclude_if=_absent)] = (
        None  # in place of all of these: no data
    )
    play: Annotated[PlayStage | None, Field(exclude_if=_absent)] = None  # in place of `evaluate`

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, values: Any) -> Any:
        """Training is measured by an evaluation or by games; rewards that are not built in are decomposed first."""
        train = values.get("train")
        if not train:
            return values
        rewards = train.get("rewards", "team")
        rewards = "true" if rewards is True else rewards  # as YAML reads it
        decompose = None
        if rewards not in BUILT_IN:
            decompose = {"method": rewards, **(values.get("decompose") or {})}
            if rewards in DECOMPOSERS and decompose["method"] != rewards:
                raise ValueError(
                    f"train.rewards is {rewards}, decompose.method {decompose['method']}: name one method, or call "
                    "the rewards something else"
                )
        return {
            **values,
            "decompose": decompose,
            "train": {**train, "rewards": rewards},
            "evaluate": values.get("evaluate") or (None if values.get("play") else {}),
        }

    @model_validator(mode="after")
    def _whole(self) -> "CellSettings":
        if self.online is not None:
            return self._online_whole()
        if self.play is not None and (self.train is None or self.evaluate is not None):
            raise ValueError(
                "a stage 'play' needs a stage 'train' or 'online', and stands in place of 'evaluate'"
            )
        if (self.dataset is None) == (self.collect is None):
            raise ValueError("give either a stage 'collect' or a 'dataset' that exists")
        if self.decompose is None and self.train is None:
            raise ValueError("nothing to measure: give a stage 'decompose' or 'train'")
        if self.evaluate is not None and self.train is None:
            raise ValueError("a stage 'evaluate' needs a stage 'train'")
        return self

    def _online_whole(self) -> "CellSettings":
        others = ("dataset", "collect", "decompose", "train", "evaluate")
        for name in others:
            if getattr(self, name) is not None:
                raise ValueError(f"a stage 'online' stands in place of '{name}'")
        if self.play is None:
            raise ValueError("nothing to measure: give a stage 'play'")
        return self

    def with_seed(self, seed: int) -> "CellSettings":
        """Fill the seed in wherever a stage leaves it open."""
        filled = {
            name: stage.model_copy(update={"seed": seed})
            for name in STAGES
            if (stage := getattr(self, name)) is not None and stage.seed is None
        }
        return self.model_copy(update=filled)


Scalar = bool | int | float | str | None
STAGES = ("collect", "decompose", "train", "online", "evaluate", "play")
_PATH = re.compile(rf"dataset|({'|'.join(STAGES)})(\.[^.]+)+")


class Block(_Strict):
    """Settings that a family of cells shares, and the grid of those that vary."""

    dataset: str | None = None
    collect: dict[str, Any] | None = None
    decompose: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    online: dict[str, Any] | None = None
    evaluate: dict[str, Any] | None = None
    play: dict[str, Any] | None = None
    grid: dict[str, list[Scalar] | dict[str, dict[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, content: Any) -> Any:
        """YAML knows more than settings are made of: dates, for one."""
        try:
            json.dumps(content, default=_refuse)
        except TypeError as error:
            raise ValueError(str(error)) from error
        return content

    @field_validator("grid")
    @classmethod
    def _axes(cls, grid: dict[str, Any]) -> dict[str, Any]:
        shorts = [short_name(axis) for axis in grid]
        for axis, values in grid.items():
            if short_name(axis) in ("seed", "block") or shorts.count(short_name(axis)) > 1:
                raise ValueError(
                    f"axis '{axis}': there is an axis '{short_name(axis)}' already; give it another name, as in "
                    f"other: {{label: {{{axis}: value}}}}"
                )
            if not values:
                raise ValueError(f"axis '{axis}' has no values")
            paths = [axis] if isinstance(values, list) else [path for one in values.values() for path in one]
            for path in paths:
                if not _PATH.fullmatch(path):
                    raise ValueError(
                        f"axis '{axis}': '{path}' is no path of a setting, like collect.steps or "
                        f"train.settings.alpha (stages: {', '.join(STAGES)})"
                    )
        return grid

    def points(self) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
        """Every point of the grid, the first axis outermost: labels by axis, and the nested settings."""
        axes = []
        for axis, values in self.grid.items():
            short = short_name(axis)
            if isinstance(values, list):
                axes.append([(short, _label(value), {axis: value}) for value in values])
            else:
                axes.append([(short, str(label), settings) for label, settings in values.items()])
        for point in product(*axes):
            nested = json.loads(json.dumps(self.model_dump(exclude={"grid"}, exclude_none=True)))
            for _, _, settings in point:
                for path, value in settings.items():
                    _set(nested, path, value)
            yield {axis: label for axis, label, _ in point}, nested


def _refuse(value: object) -> Any:
    raise TypeError(
        f"YAML reads {value} as a {type(value).__name__}, which no setting takes: put it in quotes"
    )


class Recipe(_Strict):
    """A benchmark: its grid and the tables it ends in."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    title: str
    about: str = ""  # a paragraph above the tables
    seeds: Count | list[Natural] = 5
    blocks: Annotated[dict[str, Block], Field(min_length=1)]
    tables: Annotated[list[TableSpec], Field(min_length=1)]  # the first is printed, all go into the file

    @property
    def seed_list(self) -> list[int]:
        """The seeds themselves."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @model_validator(mode="after")
    def _tables_know_their_axes(self) -> "Recipe":
        known = {axis for cell in expand(self, self.seed_list[:1]) for axis in cell.coordinates}
        for table in self.tables:
            for axis in table.axes():
                if axis not in known:
                    raise unknown_name(f"axis of table '{table.title}'", axis, known)
        return self


@dataclass(frozen=True)
class Cell:
    """One measurement: where it stands in the grid, and with which settings."""

    name: str  # readable, and different for different settings; also that of the result's file
    coordinates: Mapping[str, str]  # axis -> label; "block" and "seed" among them
    settings: CellSettings

    def alike(self) -> frozenset[str]:
        """What it shares with the same measurement of other seeds."""
        return frozenset(f"{axis}={label}" for axis, label in self.coordinates.items() if axis != "seed")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises `UsageError` naming the entry that is wrong, and what was expected."""
    if not path.is_file():
        raise UsageError(f"there is no recipe {path}")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"recipe {path} is no YAML: {error}") from error
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"recipe {path}: {explain(error)}") from error


def expand(recipe: Recipe, seeds: Sequence[int]) -> list[Cell]:
    """All cells, seeds outermost, then the blocks and their axes as the recipe orders them.

    Raises `UsageError` for settings that no stage has, and where two cells are the same.
    """
    cells: dict[str, Cell] = {}
    for seed in seeds:
        for name, block in recipe.blocks.items():
            for labels, nested in block.points():
                try:
                    settings = CellSettings.model_validate(_replaced(nested, seed)).with_seed(seed)
                except ValidationError as error:
                    raise UsageError(f"recipe {recipe.name}, block {name}: {explain(error)}") from error
                readable = re.sub(r"[^A-Za-z0-9.+_-]+", "_", "-".join([name, *labels.values()]))
                cell = Cell(
                    name=f"{readable}-s{seed}-{digest(settings)}",
                    coordinates={"block": name, **_derived(settings), **labels, "seed": str(seed)},
                    settings=settings,
                )
                twin = cells.setdefault(digest(settings), cell)
                if twin is not cell:
                    raise UsageError(
                        f"recipe {recipe.name}: {twin.name} and {cell.name} are the same cell: keep one"
                    )
    return list(cells.values())


class Placed(Protocol):
    """Something with a place in a grid: a cell, or what was measured of one."""

    @property
    def coordinates(self) -> Mapping[str, str]:
        """Axis -> label."""


AnyPlaced = TypeVar("AnyPlaced", bound=Placed)


def select(cells: Sequence[AnyPlaced], only: Iterable[str]) -> list[AnyPlaced]:
    """Keep the cells that `--only key=value[,value]` names: any of a key's values, all of the keys.

    Raises `UsageError` for a key or a value that no cell has, with near names, and where no cell has all of them.
    """
    only, wanted = list(only), dict[str, set[str]]()
    for text in only:
        key, equals, values = text.partition("=")
        if not equals:
            raise UsageError(f"--only {text}: expected key=value, for example method=macca")
        known = {axis for cell in cells for axis in cell.coordinates}
        if key not in known:
            raise unknown_name("axis of --only", key, known)
        labels = {label for cell in cells if (label := cell.coordinates.get(key))}
        for value in values.split(","):
            if value not in labels:
                raise unknown_name(f"value of --only {key}=", value, labels)
            wanted.setdefault(key, set()).add(value)
    kept = [
        cell for cell in cells if all(cell.coordinates.get(key) in values for key, values in wanted.items())
    ]
    if only and not kept:
        raise UsageError(f"--only {' --only '.join(only)}: no cell has all of these")
    return kept


def digest(model: BaseModel) -> str:
    """Eight letters that settings are known by."""
    text = json.dumps(model.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def explain(error: ValidationError) -> str:
    """The first problem, with the place where it is."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _derived(settings: CellSettings) -> dict[str, str]:
    """Coordinates that every cell has, whether its block varies them or not."""
    found: dict[str, str] = {}
    if settings.dataset is not None:
        found["dataset"] = settings.dataset
    if settings.collect is not None:
        found["env"], found["quality"] = settings.collect.env, settings.collect.quality
        found["steps"] = _label(settings.collect.steps)
    if settings.decompose is not None:
        found["method"] = settings.decompose.method
    if settings.train is not None:
        found["learner"], found["rewards"] = settings.train.learner, settings.train.rewards
    if settings.online is not None:
        found["env"] = settings.online.env
        found["learner"] = algorithm_of(settings.online)
    if settings.play is not None:
        found["against"], found["agents"] = settings.play.against, _label(settings.play.agents)
    return found


def short_name(axis: str) -> str:
    """What tables and `--only` call the axis `collect.env`: its last part."""
    return axis.rpartition(".")[2]


def _label(value: Scalar) -> str:
    if value is None:
        return "default"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _set(nested: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` at `collect.options.agents`, making the mappings on the way."""
    *parents, last = path.split(".")
    for parent in parents:
        nested = nested.setdefault(parent, {})
        if not isinstance(nested, dict):
            raise UsageError(f"'{path}' is no setting: '{parent}' holds {nested!r}, nothing below it")
    nested[last] = value


def _replaced(value: Any, seed: int) -> Any:
    """`value` with the seed wherever `$seed` stands."""
    if isinstance(value, dict):
        return {key: _replaced(item, seed) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, seed) for item in value]
    return seed if value == SEED else value
