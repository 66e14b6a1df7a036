"""`offmarl decompose` and `offmarl credit ...` as a person types them."""

import json
from pathlib import Path

import pytest

from offmarl.credit.registry import DECOMPOSERS

DATASET = "scm_a/random-v0"
COLLECT = (
    "collect --env scm_a --set env.agents=3 --quality random --steps 1500 --num-envs 30 --name " + DATASET
)
FAST = "--set credit.structure_steps=60 --set credit.refit_steps=40 --set credit.pruning_factors=[]"


@pytest.fixture(scope="module")
def decomposed(succeed) -> dict:
    """The answer of `decompose`."""
    succeed(COLLECT)
    return succeed(f"decompose {FAST} --set credit.fallback=false")


def test_every_agent_is_told_how_far_its_share_can_be_trusted(decomposed):
    assert [agent["name"] for agent in decomposed["agents"]] == ["agent_0", "agent_1", "agent_2"]
    for agent in decomposed["agents"]:
        assert {"name", "ambiguity", "reproducibility", "locality", "verdict"} <= agent.keys()
    assert decomposed["edges"].keys() == {"agent_0", "agent_1", "agent_2"}


def test_a_decomposition_is_shown_again(decomposed, offmarl, succeed):
    assert succeed("credit show") == decomposed
    assert succeed(f"credit show {DATASET} macca") == decomposed
    code, out, error = offmarl("credit show")
    assert code == 0
    assert f"dataset: {DATASET} (the latest" in error
    assert "decomposition: macca (the latest" in error
    assert decomposed["agents"][1]["verdict"] in out
    assert "made by macca with seed 0" in out


def test_decompositions_are_listed_damaged_ones_too(decomposed, home, offmarl, succeed):
    damaged = home / "datasets" / DATASET / "credit" / "torn.h5"
    damaged.write_bytes(b"not HDF5")
    try:
        answer = succeed("credit ls")
        code, out, _ = offmarl(f"credit ls {DATASET}")
    finally:
        damaged.unlink()
    assert code == 0
    (entry,) = answer["credits"]
    assert entry["name"] == "macca"
    assert entry["truth"] == decomposed["truth"]
    assert [item["name"] for item in answer["damaged"]] == ["torn"]
    assert "torn.h5 is damaged" in out


def test_decompositions_are_compared(decomposed, home, offmarl, succeed):
    file = home / "datasets" / DATASET / "credit" / "macca.h5"
    answer = succeed(f"credit compare {DATASET} team macca {file}")
    skill = {contender["name"]: contender["truth"]["skill"] for contender in answer["contenders"]}
    assert skill["macca"] == skill[str(file)] == pytest.approx(decomposed["truth"]["skill"])
    assert list(skill.values()) == sorted(skill.values(), reverse=True)
    code, out, _ = offmarl("credit compare")
    assert code == 0
    assert "nearest to the true rewards" in out
    assert all(name in out for name in ("team", "mean", "true", "macca"))


def test_a_decomposition_is_drawn(decomposed, home, succeed, tmp_path):
    answer = succeed(f"credit figures macca --format svg --episode 2 --out {tmp_path}")
    names = [Path(path).name for path in answer["figures"]]
    assert names[-2:] == ["macca-recovered.svg", "macca-episode-2.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    (default, *_) = succeed(f"credit figures {DATASET} --episode 0")["figures"]
    assert Path(default).parent == home / "figures" / DATASET


def test_whose_a_variable_is_can_be_told(decomposed, succeed, tmp_path):
    owner = tmp_path / "owner.yaml"
    owner.write_text("'*action_0': nobody\n")
    succeed(f"decompose {FAST} --owner {owner} --out {tmp_path}")
    assert json.loads((tmp_path / "macca.json").read_text())["config"]["owner"] == {"*action_0": "nobody"}


def test_a_shared_reward_can_be_declared(decomposed, succeed, tmp_path):
    answer = succeed(f"decompose --shared-reward --out {tmp_path}")
    assert answer["fallback"]
    assert {agent["verdict"] for agent in answer["agents"]} == {"shared reward: equal split is exact"}


def test_the_help_names_every_method(offmarl):
    _, out, _ = offmarl("decompose --help")
    assert f"{', '.join(DECOMPOSERS)}, or your module:Class." in " ".join(out.split())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("decompose --method mean --shared-reward", "--shared-reward means nothing to the method 'mean'"),
        (
            "decompose --method mean --owner /nowhere",
            "--owner means nothing to the method 'mean'; it is for: macca",
        ),
        ("decompose --owner /nowhere", "--owner /nowhere: No such file"),
        (f"credit show {DATASET} maca", "it offers: team, mean, true, macca"),
        ("credit show scm_a/rando-v0", "did you mean scm_a/random-v0"),
        ("credit show macca mean", "one decomposition at a time"),
        (f"credit compare {DATASET} macca", "name two or more"),
        ("credit figures --format jpg", "--format jpg: expected png, pdf, svg"),
        ("credit figures --episode 1000000", "has the episodes 0 to 59"),
    ],
)
def test_wrong_use_is_one_line(decomposed, offmarl, home, command, message):
    before = sorted(home.rglob("*"))
    code, _, error = offmarl(command)
    assert code == 2
    assert message in error
    assert error.rstrip().splitlines()[-1].startswith("offmarl: ")
    assert sorted(home.rglob("*")) == before


def test_a_dataset_without_decompositions_says_how_to_make_one(offmarl, succeed, tmp_path):
    folder = tmp_path / "bare"
    succeed(f"collect --env scm_a --quality random --steps 500 --out {folder}")
    code, _, error = offmarl(f"credit show {folder}")
    assert code == 2
    assert "Make one with: offmarl decompose" in error
    code, out, _ = offmarl(f"credit ls {folder}")
    assert code == 0
    assert f"none yet: offmarl decompose --dataset {folder}" in out
