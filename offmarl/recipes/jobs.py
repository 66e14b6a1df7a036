"""What a benchmark has to do, in which order: jobs that several cells share come before those that need them."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from offmarl.behaviour.qualities import TRAINED
from offmarl.data.store import partial_folder
from offmarl.recipes import games, stages
from offmarl.recipes.engine import Engine, Finished, Work
from offmarl.recipes.recipe import Cell, CollectStage, OnlineStage, TrainStage, algorithm_of, digest

DATA, CREDIT, POLICIES = "data", "credit", "policies"  # what cells share, below the folder of work


@dataclass(frozen=True)
class Job:
    """Something to be done by an engine: shared data, shared credit, or a cell's measurement."""

    key: str
    work: Work
    requires: frozenset[str] = frozenset()  # jobs that must have succeeded
    after: str | None = None  # a job that must have ended, one way or the other
    cell: Cell | None = None
    product: Path | None = None  # folder that it makes

    @property
    def kind(self) -> str:
        """What it makes that cells share: data, credit or policies."""
        return POLICIES if self.product is None else self.product.parent.name


class Schedule:
    """The jobs of the cells in their order, each started once what it requires is there."""

    def __init__(self, cells: Sequence[Cell], work: Path, device: str, keep: bool) -> None:
        self.work, self.device, self.keep = work, device, keep
        self.cells_ended = 0
        self._jobs: dict[str, Job] = {}
        self._users: dict[str, set[str]] = {}  # product -> cells that still need it
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)  # kind -> of those done, if shared
        self._ended: set[str] = set()
        self._behaviours: dict[str, str] = {}  # online training -> the first job that needs it
        for cell in cells:
            self._add(cell)

    def forget(self) -> None:
        """Remove the credit and the policies that an earlier run left: the code that made them may have changed."""
        for job in self._jobs.values():
            if job.product is not None and job.kind in (CREDIT, POLICIES):
                shutil.rmtree(job.product, ignore_errors=True)

    def seconds_left_to_prepare(self) -> float:
        """Work that is left to do for what cells share, by what such work took so far: nothing before the first."""
        left = Counter(
            job.kind for job in self._jobs.values() if job.cell is None and job.key not in self._ended
        )
        return sum(
            count * fmean(self._seconds[kind]) for kind, count in left.items() if kind in self._seconds
        )

    def run(self, engine: Engine) -> Iterator[tuple[Job, Finished]]:
        """Keep the engine busy; yield every job with its end, and those that can no longer be done."""
        waiting, succeeded = dict(self._jobs), set[str]()
        under_way = 0
        while waiting or under_way:
            for job in self._startable(waiting, succeeded, engine.slots - under_way):
                del waiting[job.key]
                engine.submit(job.key, job.work)
                under_way += 1
            for finished in engine.wait():
                under_way -= 1
                if finished.error is None:
                    succeeded.add(finished.key)
                for gone in [finished, *self._doomed(finished, waiting)]:
                    waiting.pop(gone.key, None)
                    self._ended.add(gone.key)
                    job = self._jobs[gone.key]
                    if job.cell is not None:
                        self.cells_ended += 1
                        self._release(job.key)
                    elif gone.error is None:
                        self._seconds[job.kind].append(gone.seconds)
                    yield job, gone

    def _add(self, cell: Cell) -> None:
        settings, requires = cell.settings, set[str]()
        if settings.online is not None:
            for player in (settings.online, games.learnt_opponent(settings)):
                if isinstance(player, OnlineStage):
                    requires.add(self._add_online(player))
            measure = partial(stages.measure_games, settings, None, None, None, self.device)
            self._jobs[cell.name] = Job(cell.name, measure, frozenset(requires), cell=cell)
            return
        source: Path | str
        if settings.collect is None:
            assert settings.dataset is not None
            source = origin = settings.dataset
        else:
            stage = settings.collect
            origin = f"{stage.env}-{stage.quality}-{stage.steps or 'default'}-s{stage.seed}-{digest(stage)}"
            source = self.work / DATA / origin
            after = None
            if stage.quality in TRAINED:
                training = stage.model_copy(
                    update={"quality": "", "steps": None, "num_envs": None, "free_riders": 0}
                )
                after = self._behaviours.setdefault(digest(training), origin)
            self._share(
                origin,
                Job(
                    origin,
                    partial(stages.collect, stage, source),
                    after=None if after == origin else after,
                    product=source,
                ),
                cell,
            )
            requires.add(origin)
        credit = None
        if settings.train is not None and settings.decompose is not None:
            key = f"{origin.replace('/', '_')}-{settings.decompose.method}-{digest(settings.decompose)}"
            credit = self.work / CREDIT / key
            make = partial(stages.make_credit, source, settings.decompose, credit, self.device)
            self._share(key, Job(key, make, frozenset(requires), product=credit), cell)
            requires.add(key)
        if settings.play is None:
            scratch = self.work / "runs" / cell.name
            measure = partial(stages.measure, source, settings, credit, scratch, self.device)
        else:
            folders = []
            made_of = frozenset(requires)
            for player in (settings.train, games.learnt_opponent(settings)):
                folder = None
                if isinstance(player, TrainStage):
                    taught_by = origin.replace("/", "_") if credit is None else credit.name
                    key = f"{taught_by}-{player.learner}-{digest(player)}"
                    folder = self.work / POLICIES / key
                    make = partial(stages.train_player, source, player, credit, folder, self.device)
                    self._share(key, Job(key, make, made_of, product=folder), cell)
                    requires.add(key)
                folders.append(folder)
            run, opponent = folders
            measure = partial(stages.measure_games, settings, source, run, opponent, self.device)
        self._jobs[cell.name] = Job(cell.name, measure, frozenset(requires), cell=cell)

    def _add_online(self, stage: OnlineStage) -> str:
        """The job of a training whose policies stay in the cache, as those of data do."""
        trained = stage.model_copy(update={"quality": "expert"})
        key = f"{stage.env}-online-{algorithm_of(stage)}-s{stage.seed}-{digest(trained)}"
        collected = CollectStage(**stage.model_dump(exclude={"quality"}), quality="")
        after = self._behaviours.setdefault(digest(collected), key)
        learn = partial(games.learn_online, trained, self.device)
        self._jobs.setdefault(key, Job(key, learn, after=None if after == key else after))
        return key

    def _share(self, key: str, job: Job, cell: Cell) -> None:
        self._jobs.setdefault(key, job)
        self._users.setdefault(key, set()).add(cell.name)

    def _startable(self, waiting: dict[str, Job], succeeded: set[str], free: int) -> list[Job]:
        """The first jobs of which nothing is missing, as many as there are free slots."""
        found: list[Job] = []
        for job in waiting.values():
            if len(found) == free:
                break
            if job.requires <= succeeded and (job.after is None or job.after in self._ended):
                found.append(job)
        return found

    def _doomed(self, failure: Finished, waiting: dict[str, Job]) -> list[Finished]:
        """What can no longer be done because something that it requires failed."""
        if failure.error is None:
            return []
        what = self._jobs[failure.key].kind
        return [
            Finished(
                job.key,
                seconds=0.0,
                error=f"its {what} could not be made: {failure.error}",
                traceback=failure.traceback,
            )
            for job in waiting.values()
            if failure.key in job.requires
        ]

    def _release(self, cell: str) -> None:
        """Remove the data and the credit that no cell needs any more."""
        for key, users in self._users.items():
            if cell in users:
                users.remove(cell)
                product = self._jobs[key].product
                if not users and not self.keep and product is not None:
                    shutil.rmtree(product, ignore_errors=True)
                    shutil.rmtree(partial_folder(product), ignore_errors=True)
