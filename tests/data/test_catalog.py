import json
import os
import shutil

import pytest
from toy import collect_toy, toy_spec

from offmarl.data import catalog
from offmarl.data.schema import check_id
from offmarl.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def install(collected, name):
    return shutil.copytree(collected[False], catalog.datasets_folder() / name)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("mpe_spread/expert-v0", True),
        ("a/b/c-d-v12", True),
        ("mpe/medium_replay.x-v1", True),
        ("expert-v0", False),
        ("a/expert", False),
        ("a/expert-v", False),
        ("../a/expert-v0", False),
        ("a//b-v0", False),
        ("a/b-v0/", False),
        ("a/.b-v0", False),
        ("a b/c-v0", False),
    ],
)
def test_id_grammar(text, good):
    if good:
        assert check_id(text) == text
    else:
        with pytest.raises(UsageError, match="namespace/name-vN"):
            check_id(text)


def test_by_id_by_path_and_the_latest(collected, tmp_path):
    with pytest.raises(UsageError, match="there is no dataset"):
        catalog.find_dataset()
    older = install(collected, "toy/older-v0")
    newer = tmp_path / "newer"
    collect_toy(newer, 20)
    shutil.move(newer, catalog.datasets_folder() / "toy/newer-v0")
    os.utime(older / "dataset.json")  # what counts is when it was created, not when it was touched
    assert catalog.find_dataset().folder.name == "newer-v0"
    assert catalog.find_dataset("toy/older-v0").folder == older
    assert catalog.find_dataset(older).folder == older
    assert catalog.find_dataset(str(older)).folder == older
    os.chdir(older.parent)
    assert catalog.find_dataset("older-v0").card.id == "toy/random-v0"
    assert [entry.id for entry in catalog.list_datasets()] == ["toy/newer-v0", "toy/older-v0"]


def test_unknown_id_names_near_ones(collected):
    install(collected, "toy/expert-v0")
    with pytest.raises(UsageError, match="did you mean toy/expert-v0"):
        catalog.find_dataset("toy/expret-v0")
    with pytest.raises(UsageError, match="namespace/name-vN"):
        catalog.find_dataset("expert")
    with pytest.raises(DataError, match="not a folder"):
        catalog.find_dataset("./nowhere")


def test_damaged_and_unfinished_ones_do_not_hide_the_others(collected):
    install(collected, "toy/good-v0")
    (install(collected, "toy/bad-v0") / "dataset.json").write_text("{")
    install(collected, "toy/open-v0.partial")
    (install(collected, "toy/gone-v0") / "data.h5").unlink()
    entries = {entry.id: entry for entry in catalog.list_datasets()}
    assert sorted(entries) == ["toy/bad-v0", "toy/gone-v0", "toy/good-v0"]
    assert "cannot be read as JSON" in entries["toy/bad-v0"].problem
    assert "no data.h5" in entries["toy/gone-v0"].problem
    assert catalog.find_dataset().folder.name == "good-v0"
    with pytest.raises(DataError, match="not finished"):
        catalog.find_dataset("toy/open-v0")


def test_folders_follow_the_home(home, monkeypatch):
    assert catalog.runs_folder() == home / "runs"
    assert catalog.policies_folder() == home / "policies"
    monkeypatch.delenv("OFFMARL_HOME")
    assert str(catalog.offmarl_home()).endswith(".offmarl")
    assert catalog.catalogue_folder().name == "datasets"
    assert (catalog.catalogue_folder() / "README.md").exists()


def test_references_match_by_resolved_options(tmp_path):
    path = tmp_path / "references.json"
    assert catalog.reference_returns(toy_spec(), path) is None
    catalog.save_reference(toy_spec(), -3.0, 5.0, 1000, "measure toy", path)
    catalog.save_reference(toy_spec(horizon=50), -9.0, 9.0, 1000, "measure toy", path)
    catalog.save_reference(toy_spec(), -2.0, 6.0, 2000, "measure toy", path)
    assert catalog.reference_returns(toy_spec(), path) == {"random": -2.0, "expert": 6.0}
    assert catalog.reference_returns(toy_spec(horizon=50), path) == {"random": -9.0, "expert": 9.0}
    assert catalog.reference_returns(toy_spec(discrete=True), path) is None
    assert catalog.reference_returns(toy_spec().model_copy(update={"backend": "pettingzoo"}), path) is None
    assert len(json.loads(path.read_text())) == 2
    path.write_text('[{"env": "toy"}]')
    with pytest.raises(DataError, match="no list of reference returns"):
        catalog.reference_returns(toy_spec(), path)


def test_references_that_come_with_offmarl_can_be_read():
    assert catalog.reference_returns(toy_spec()) is None
