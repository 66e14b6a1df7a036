"""`offmarl data import`, `export` and `download` as a person types them."""

import json

import pytest
from foreign import write_omar

from offmarl.data import download
from offmarl.data.download import published


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("omar")
    write_omar(root / "seed_0_data", rows=50)
    return root


@pytest.fixture(scope="module")
def imported(folder, succeed):
    name = "mpe_spread_omar/theirs-v0"
    return succeed(
        f"data import --format omar {folder / 'seed_0_data'} --env mpe_spread_omar --name {name} --overwrite"
    )


def test_an_import_is_a_dataset_like_any_other(imported, succeed, home):
    assert (imported["id"], imported["env"]) == ("mpe_spread_omar/theirs-v0", "mpe_spread_omar")
    assert (imported["transitions"], imported["episodes"]) == (50, 2)
    assert imported["references"]["expert"] > imported["references"]["random"]
    provenance = imported["provenance"]
    assert provenance["command"].startswith("offmarl data import --format omar")
    assert provenance["source"]["format"] == "omar"
    assert len(provenance["source"]["sha256"]["obs_0.npy"]) == 64
    assert succeed("data validate mpe_spread_omar/theirs-v0")["valid"]
    assert [entry["id"] for entry in succeed("data ls")["datasets"]] == ["mpe_spread_omar/theirs-v0"]


def test_a_person_reads_what_was_assumed(folder, offmarl):
    command = f"data import --format omar {folder / 'seed_0_data'} --env new --name new/theirs-v0 --overwrite"
    done = offmarl(command)
    assert done.returncode == 0, done.stderr
    assert "note: 'dones' is zero everywhere: cut every 25 rows" in done.stdout
    assert "note: team_reward is the sum of the agents' stored rewards" in done.stdout
    assert "next: offmarl data validate new/theirs-v0" in done.stdout
    done = offmarl(command.removesuffix(" --overwrite"))
    assert done.returncode == 2
    assert "exists: choose another name" in done.stderr


def test_options_of_the_task(folder, offmarl):
    base = f"data import --format omar {folder / 'seed_0_data'} --env mpe_spread_omar --name a/b-v0"
    done = offmarl(f"{base} --set env.agents=4")
    assert done.returncode == 1
    assert "3 agents, mpe_spread_omar has 4" in done.stderr
    assert offmarl(f"{base} --set env.agnets=4").returncode == 2
    assert offmarl(f"{base} --format omarr").returncode == 2


@pytest.mark.parametrize("form", ["vault", "minari", "d3rlpy"])
def test_an_export_says_how_it_is_opened(form, imported, offmarl, succeed, tmp_path):
    target = tmp_path / "theirs"
    answer = succeed(f"data export mpe_spread_omar/theirs-v0 --format {form} --out {target}")
    assert answer["path"] == str(target)
    assert form.replace("vault", "flashbax") in answer["usage"]
    back = succeed(f"data import {target} --format {form} --name mpe_spread_omar/back-v0 --overwrite")
    assert (back["transitions"], back["env"]) == (50, "mpe_spread_omar")
    done = offmarl(f"data export mpe_spread_omar/theirs-v0 --format {form} --out {target}")
    assert done.returncode == 2


def test_only_some_formats_are_written(imported, offmarl, tmp_path):
    done = offmarl(f"data export mpe_spread_omar/theirs-v0 --format omar --out {tmp_path / 'x'}")
    assert done.returncode == 2
    assert "written are pymarl, vault, minari, d3rlpy" in done.stderr


def test_download_without_a_name_lists_what_there_is(offmarl, succeed):
    done = offmarl("data download")
    assert done.returncode == 0
    assert "smac_5m_vs_6m/cfcql-" in done.stdout
    assert "expert, medium, medium-replay, mixed" in done.stdout
    listed = succeed("data download")["published"]
    assert [entry["name"] for entry in listed] == [one.name for one in published()]


def test_download_without_a_network(offmarl, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)
    done = offmarl("data download smac_5m_vs_6m/cfcql-expert")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 2  # where from, and what went wrong
    assert "Network is unreachable" in done.stderr
    assert "offmarl data import --format vault 5m_vs_6m.vlt/Expert --env smac_5m_vs_6m" in done.stderr
    done = offmarl("data download smac_5m_vs_6m/cfcql-exprt")
    assert (done.returncode, "did you mean smac_5m_vs_6m/cfcql-expert" in done.stderr) == (2, True)
    assert json.loads(offmarl("data download --json").stdout)
