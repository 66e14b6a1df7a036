"""Is this machine fit for offmarl? Versions, devices, the home folder, the extras, and the pipeline in miniature."""

import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

import offmarl
from offmarl.home import offmarl_home
from offmarl.native.library import library
from offmarl.reporter import Progress, Silent

CORE = ("torch", "numpy", "h5py")
FOR_DEVELOPERS = ("dev", "docs")
STAGES = 4  # of the self-test
GIB = 1 << 30


@dataclass(frozen=True)
class Extra:
    """What an optional part of offmarl needs, and what of it is here."""

    name: str
    installed: dict[str, str]  # package -> version
    missing: tuple[str, ...]  # requirements that no installed package meets

    @property
    def advice(self) -> str:
        """The line that installs it, empty where nothing is missing."""
        return f'pip install "offmarl[{self.name}]"' if self.missing else ""


@dataclass(frozen=True)
class Home:
    """The folder of datasets and runs."""

    folder: str
    writable: bool
    free_gib: float
    problem: str = ""


@dataclass(frozen=True)
class SelfTest:
    """Collect, decompose, train, evaluate: the numbers mean nothing, only that they are there."""

    seconds: float
    problem: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `offmarl doctor` tells."""

    versions: dict[str, str]
    devices: tuple[str, ...]
    threads: int
    kernels: str  # who runs networks on the CPU
    home: Home
    extras: tuple[Extra, ...]
    self_test: SelfTest

    @property
    def problems(self) -> list[str]:
        """What is broken; an extra that is not installed is not."""
        return [problem for problem in (self.home.problem, self.self_test.problem) if problem]


def examine(progress: Progress) -> Diagnosis:
    """Look at everything; `progress(done, total)` counts the stages of the self-test."""
    import torch

    _load_libraries()
    versions = {"offmarl": offmarl.__version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in CORE}
    gpus = (torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return Diagnosis(
        versions=versions,
        devices=("cpu", *(f"cuda:{index} ({name})" for index, name in enumerate(gpus))),
        threads=torch.get_num_threads(),
        kernels=str(library()),
        home=home_folder(offmarl_home()),
        extras=extras(),
        self_test=self_test(progress),
    )


def home_folder(folder: Path) -> Home:
    """Whether `folder`, or the nearest one above it that exists, can be written to; nothing stays there."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free / GIB
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as error:
        advice = "set OFFMARL_HOME to a folder of yours"
        return Home(str(folder), False, free, f"{folder} cannot be written to ({error.strerror}): {advice}")
    if folder.exists() and not folder.is_dir():
        return Home(str(folder), False, free, f"{folder} is a file: set OFFMARL_HOME to a folder")
    return Home(str(folder), True, free)


def extras() -> tuple[Extra, ...]:
    """What offmarl's own metadata declares as optional, in alphabetical order."""
    names = metadata("offmarl").get_all("Provides-Extra") or []
    needed = [Requirement(line) for line in requires("offmarl") or []]
    return tuple(
        _extra(name, [one for one in needed if one.marker is not None and _asks(one, name)])
        for name in sorted(names)
        if name not in FOR_DEVELOPERS
    )


def _asks(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _extra(name: str, needed: list[Requirement]) -> Extra:
    installed, missing = {}, []
    for one in needed:
        try:
            installed[one.name] = version(one.name)
        except PackageNotFoundError:
            missing.append(f"{one.name}{one.specifier}")
            continue
        if not one.specifier.contains(installed[one.name], prereleases=True):
            missing.append(f"{one.name}{one.specifier}")
    return Extra(name, installed, tuple(missing))


def self_test(progress: Progress) -> SelfTest:
    """Run every stage on a task whose causes are known, in a temporary folder; the first error is the answer."""
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="offmarl-doctor-") as folder:
            _pipeline(Path(folder), progress)
    except Exception as error:  # whatever is broken here is what the person wants to know
        return SelfTest(time.perf_counter() - started, f"self-test: {type(error).__name__}: {error}")
    return SelfTest(time.perf_counter() - started)


def _load_libraries() -> None:
    """Import what is otherwise imported at its first use, so that the self-test times the pipeline alone."""
    import scipy.stats  # noqa: F401
    import torch

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first optimiser imports torch's compiler


def _pipeline(folder: Path, progress: Progress) -> None:
    from offmarl.behaviour.random import RandomPolicy
    from offmarl.credit.relabel import decompose
    from offmarl.data.collect import collect
    from offmarl.data.store import Dataset
    from offmarl.data.writer import Writer
    from offmarl.envs.registry import make
    from offmarl.evaluation.scores import evaluate_run
    from offmarl.training.offline import TrainRequest, train_offline

    with (
        make("scm_a", 10) as env,
        Writer(folder / "data", env.spec, id="doctor/random-v0") as writer,
    ):
        collect(env, RandomPolicy(env.spec), writer, transitions=500, seed=0)
    dataset = Dataset.open(folder / "data")
    progress(1, STAGES)
    decompose(dataset, method="mean", name="equal")
    progress(2, STAGES)
    train_settings: dict[str, Any] = {"steps": 5, "batch_size": 64, "tensorboard": False}
    request = TrainRequest("bc", "equal", train_settings=train_settings, out=folder / "run")
    run = train_offline(dataset, request)
    progress(3, STAGES)
    evaluate_run(run, episodes=4, seed=0, env_options={}, device="cpu", reporter=Silent())
    progress(4, STAGES)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
