"""A training run on disk: `run.json`, `metrics.jsonl` and `checkpoint.safetensors` in one folder."""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from offmarl.atomic import write_json
from offmarl.data.catalog import is_path, runs_folder
from offmarl.envs.base import EnvSpec, Frame
from offmarl.errors import DataError, UsageError, unknown_name
from offmarl.learners.base import Learner
from offmarl.learners.meanfield.base import MeanFieldLearner
from offmarl.learners.registry import make_learner
from offmarl.stored_json import read_versioned
from offmarl.training.acting import acting
from offmarl.training.checkpoint import Checkpoint

SCHEMA_VERSION = 1
RECORD_NAME = "run.json"


class _Dataset(BaseModel):
    """What a run was trained on."""

    id: str
    path: str
    sha256: str


class _Entries(BaseModel):
    """What run.json must say for the run to be listed, evaluated or continued."""

    id: str
    created: str
    status: str
    dataset: _Dataset
    env: dict[str, Any]
    learner: str
    learner_config: dict[str, Any]
    rewards: str
    seeds: Annotated[list[int], Field(min_length=1)]


class RunFolder:
    """One training run. `record` is the content of run.json; change it with `update`."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder, self.record = folder, record

    @classmethod
    def create(cls, folder: Path, record: dict[str, Any], overwrite: bool = False) -> "RunFolder":
        """Start a run in `folder`.

        Raises `UsageError` where there is a run already and `overwrite` is not given, and where the folder
        holds something that is no run.
        """
        cls.require_ours(folder)
        if folder.exists() and any(folder.iterdir()):
            if not overwrite:
                cls.open(folder).refuse()
            for entry in folder.iterdir():  # not the folder: it is what `only_one` holds
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        run = cls(folder, {"schema_version": SCHEMA_VERSION, **record})
        run.update(status="running", created=datetime.now(UTC).isoformat())
        return run

    @staticmethod
    def require_ours(folder: Path) -> None:
        """Raise `UsageError` where a run cannot be written to `folder` without spoiling what is there."""
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file: choose a folder for the run")
        if folder.exists() and any(folder.iterdir()) and not (folder / RECORD_NAME).exists():
            raise UsageError(f"{folder} holds files that are no run: choose another folder")

    @classmethod
    def open(cls, folder: Path) -> "RunFolder":
        """Read the run in `folder`. Raises `DataError` if there is none, or run.json is damaged or newer."""
        path = folder / RECORD_NAME
        _, record = read_versioned(path, "run", "record of a run", _Entries, SCHEMA_VERSION)
        return cls(folder, record)

    @property
    def id(self) -> str:
        """What finds it: `<dataset>/<learner>-<rewards>-s<seeds>`."""
        return str(self.record["id"])

    @property
    def status(self) -> str:
        """`running` (or interrupted), `complete` or `failed`."""
        return str(self.record["status"])

    @property
    def summary(self) -> dict[str, float]:
        """The last metrics, mean over seeds; empty before the run is complete."""
        return dict(self.record.get("summary") or {})

    @property
    def spec(self) -> EnvSpec:
        """The task it was trained for. Raises `DataError` if its description is damaged."""
        try:
            return EnvSpec.model_validate(self.record["env"])
        except ValidationError as error:
            raise DataError(
                f"{self.folder / RECORD_NAME}: 'env' is damaged: {error.errors()[0]['msg']}"
            ) from error

    @property
    def checkpoint_path(self) -> Path:
        """The latest checkpoint."""
        return self.folder / "checkpoint.safetensors"

    @property
    def metrics_path(self) -> Path:
        """One line of JSON a reading."""
        return self.folder / "metrics.jsonl"

    def refuse(self) -> NoReturn:
        """Raise the `UsageError` for starting a run where this one is."""
        if self.status == "complete":
            raise UsageError(f"run {self.id} is already complete: --overwrite replaces it")
        raise UsageError(
            f"run {self.id} is there, not complete: --resume continues it, --overwrite replaces it"
        )

    def update(self, **changes: Any) -> None:
        """Change entries of run.json."""
        self.record = {**self.record, **changes}
        write_json(self.folder / RECORD_NAME, self.record)


def list_runs() -> list[RunFolder]:
    """All readable runs of this machine, oldest first."""
    runs = []
    for path in runs_folder().rglob(RECORD_NAME):
        try:
            runs.append(RunFolder.open(path.parent))
        except DataError:
            continue  # asking for it by name says what is wrong with it
    return sorted(runs, key=lambda run: (run.record["created"], run.id))


def find_run(id_or_path: str | Path | None = None) -> RunFolder:
    """Open a run by id or path; without either, the latest that has a checkpoint.

    Raises `UsageError` for an unknown id (with near ones) or where there is none, `DataError` for damage.
    """
    if id_or_path is None:
        usable = [run for run in list_runs() if run.checkpoint_path.exists()]
        if not usable:
            raise UsageError(f"there is no run in {runs_folder()} yet: train one, or give a path")
        return usable[-1]
    text = str(id_or_path)
    if is_path(id_or_path, RECORD_NAME):
        return RunFolder.open(Path(text).expanduser())
    if not (runs_folder() / text / RECORD_NAME).exists():
        raise unknown_name("run", text, [run.id for run in list_runs()])
    return RunFolder.open(runs_folder() / text)


class TrainedPolicy:
    """The greedy policies of a run: of all S seeds, the first share of the copies seed 0's, or of one."""

    def __init__(
        self, learner: Learner, steps: int, index: int | None = None, spec: EnvSpec | None = None
    ) -> None:
        self.learner, self.steps, self.index = learner, steps, index
        self.spec = spec or learner.spec
        self.n_seeds = len(learner.seeds)
        self._acting = acting(learner, self.spec, index)

    def of_seed(self, index: int = 0) -> "TrainedPolicy":
        """Give the policy of the seed at `index` alone, for any number of copies."""
        return TrainedPolicy(self.learner, self.steps, index, self.spec)

    def on(self, spec: EnvSpec) -> "TrainedPolicy":
        """Take the policies to another task: of other options, and where they see by rendering, of more agents.

        Raises `DataError` for a task of other shapes, `UsageError` for one with units that were not trained.
        """
        if isinstance(self.learner, MeanFieldLearner):
            return TrainedPolicy(self.learner, self.steps, self.index, spec)
        for name in ("n_agents", "obs_dim", "action_dim", "action_type"):
            here, there = getattr(spec, name), getattr(self.spec, name)
            if here != there:
                raise DataError(
                    f"a policy that was trained with {name}={there} cannot act in {spec.id} with {name}={here}"
                )
        return self

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        """Forget what was remembered in copies where `starting` [E] is true."""
        self._acting.begin(starting, generator)

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        """[E, N, A] float in [-1, 1], or [E, N] int64. Raises `UsageError` if E is no multiple of S."""
        return self._acting.act(frame, generator)

    def annotations(self) -> dict[str, Tensor]:
        """No hidden facts."""
        return self._acting.annotations()


def load_policy(run: RunFolder | Path, device: torch.device | str = "cpu") -> TrainedPolicy:
    """Rebuild a run's policies from run.json and its checkpoint; the dataset is not needed.

    Raises `DataError` naming what is missing, damaged or of another shape.
    """
    if isinstance(run, Path):
        run = RunFolder.open(run)
    checkpoint = Checkpoint.load(run.checkpoint_path, device)
    record = run.record
    try:
        learner = make_learner(record["learner"], run.spec, record["learner_config"], record["seeds"], device)
    except UsageError as error:
        raise DataError(
            f"{run.folder / RECORD_NAME} does not describe a learner of this offmarl: {error}"
        ) from error
    try:
        learner.load_state_dict(checkpoint.learner, training=False)
    except DataError as error:
        raise DataError(f"{run.checkpoint_path}: {error}") from error
    return TrainedPolicy(learner, checkpoint.step)


def seeds_text(seeds: Sequence[int]) -> str:
    """`0-4` for consecutive seeds, `0+3+7` for others."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return "+".join(str(seed) for seed in seeds)
