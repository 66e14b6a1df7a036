"""A file larger than memory imports: what is held at a time does not grow with the file."""

import tracemalloc

import h5py
import numpy as np
import pytest
from foreign import write_omar

from offmarl.data import validate
from offmarl.data.formats.task import known_task
from offmarl.data.formats.transfer import export_dataset
from offmarl.data.store import Dataset
from offmarl.data.writer import Writer
from offmarl.envs.base import EnvSpec
from offmarl.reporter import Silent

BLOCK = 1 << 17
ALLOWED = 5 << 19  # of Python and numpy at a time, most of it the parts of the writer


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(validate, "BLOCK_BYTES", BLOCK)
    for module in ("base", "transfer", "beside", "pymarl"):
        monkeypatch.setattr(f"offmarl.data.formats.{module}.BLOCK_BYTES", BLOCK)
    monkeypatch.setattr("offmarl.data.writer.PART_BYTES", 4 * BLOCK)
    monkeypatch.setattr("offmarl.data.formats.omar.SCAN_ROWS", 1 << 10)
    monkeypatch.setattr("offmarl.data.formats.vault.SCAN_ROWS", 1 << 10)
    monkeypatch.setattr("offmarl.data.formats.vault.CHUNK_BYTES", BLOCK)
    monkeypatch.setattr("offmarl.data.formats.vault.CACHE_BYTES", BLOCK)


def peak_of(action) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def write_large(folder, episodes: int = 50, steps: int = 200) -> Dataset:
    """8 MB of a discrete task."""
    spec = EnvSpec(
        id="large",
        agents=("a", "b"),
        groups=(("a", "b"),),
        action_type="discrete",
        obs_names=(tuple(f"o{i}" for i in range(80)),) * 2,
        action_names=(("u", "v"),) * 2,
        state_names=tuple(f"s{i}" for i in range(40)),
        horizon=steps,
    )
    rng = np.random.default_rng(0)
    rows = 10 * (steps + 1)
    truncated = np.zeros((10, steps + 1))
    truncated[:, -2] = 1
    with Writer(folder, spec, id="large/own-v0") as writer:
        for _ in range(episodes // 10):
            arrays = {
                "obs": rng.standard_normal((rows, 2, 80)),
                "state": rng.standard_normal((rows, 40)),
                "action": np.zeros((rows, 2)),
                "team_reward": np.zeros(rows),
                "terminated": np.zeros(rows),
                "truncated": truncated.ravel(),
            }
            writer.append(arrays, [steps + 1] * 10)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Dataset:
    return write_large(tmp_path_factory.mktemp("large") / "d")


SLOWLY = [pytest.param(form, marks=pytest.mark.slow) for form in ("minari", "d3rlpy")]


@pytest.mark.parametrize("form", ["pymarl", "vault", *SLOWLY])
def test_exports_and_imports_hold_a_few_blocks(form, large, bring, tmp_path, small_blocks):
    if form == "minari":
        import minari  # noqa: F401 (its own memory is not what is measured)
    assert large.card.bytes > 3 * ALLOWED
    out = tmp_path / "theirs"
    exported = peak_of(lambda: export_dataset(large, form, out, False, Silent()))
    # Something that exists already: what importing modules takes was taken above.
    imported = peak_of(lambda: bring(out, form))
    assert exported < ALLOWED, exported
    assert imported < ALLOWED, imported


def test_an_omar_folder_is_mapped(bring, tmp_path, small_blocks):
    write_omar(tmp_path / "d", rows=30_000)
    size = sum(path.stat().st_size for path in (tmp_path / "d").iterdir())
    known_task("mpe_spread_omar", {})  # loads what the environment needs
    peak = peak_of(lambda: bring(tmp_path / "d", "omar", env="mpe_spread_omar"))
    assert size > 4 * ALLOWED
    assert peak < ALLOWED, peak


def test_padding_does_not_count(bring, tmp_path, small_blocks):
    """Short episodes of a task with a long time limit: 200 times more padding than rows."""
    with h5py.File(tmp_path / "m.h5", "w") as file:
        shapes = {"obs": (2, 40), "actions": (2, 1), "reward": (1,), "terminated": (1,), "filled": (1,)}
        for name, shape in shapes.items():
            file.create_dataset(name, (120, 400, *shape), "f4", chunks=(1, 400, *shape), compression="gzip")
        file["filled"][:, :3] = 1
        file["obs"][:, :3] = 1
    padded = 120 * 400 * 2 * 40 * 4
    peak = peak_of(lambda: bring(tmp_path / "m.h5", "pymarl", env="new"))
    assert padded > 3 * ALLOWED
    assert peak < ALLOWED, peak
