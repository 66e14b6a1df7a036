"""`offmarl doctor` as a person types it."""

import pytest

from offmarl import doctor


def test_a_machine_that_is_well(succeed, home):
    before = sorted(home.rglob("*"))
    found = succeed("doctor")
    assert found["ok"]
    assert found["problems"] == []
    assert found["versions"].keys() == {"offmarl", "python", "torch", "numpy", "h5py"}
    assert found["devices"][0] == "cpu"
    assert found["threads"] >= 1
    assert found["home"]["folder"] == str(home)
    assert found["home"]["writable"]
    assert found["home"]["free_gib"] > 0
    assert sorted(home.rglob("*")) == before, "nothing is left"


def test_extras_come_with_a_version_or_the_line_that_installs_them(offmarl, monkeypatch):
    declared = [
        "torch>=2.4",
        'h5py>=3; extra == "here"',
        'surely-not-installed>=1; extra == "away"',
        'h5py>=999; extra == "old"',
        'pytest>=8; extra == "dev"',
    ]
    monkeypatch.setattr(doctor, "requires", lambda _: declared)
    names = type("Names", (), {"get_all": lambda *_: ["here", "away", "old", "dev"]})
    monkeypatch.setattr(doctor, "metadata", lambda _: names())
    found = {extra.name: extra for extra in doctor.extras()}
    assert found.keys() == {"here", "away", "old"}
    assert found["here"].installed["h5py"]
    assert found["here"].advice == ""
    assert found["away"].missing == ("surely-not-installed>=1",)
    assert found["away"].advice == 'pip install "offmarl[away]"'
    assert found["old"].missing == ("h5py>=999",)
    assert 'pip install "offmarl[away]"' in offmarl("doctor").stdout


def test_a_home_that_cannot_be_written_to_is_a_problem(offmarl, tmp_path):
    (tmp_path / "file").write_text("")
    done = offmarl("doctor --quiet", tmp_path / "file")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{tmp_path / 'file'} is a file: set OFFMARL_HOME to a folder" in done.stderr
    assert "cannot be written to" in doctor.home_folder(doctor.Path("/proc/offmarl")).problem


def test_a_stage_that_fails_is_told_in_a_line(offmarl, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such thing")

    monkeypatch.setattr("offmarl.training.offline.train_offline", broken)
    done = offmarl("doctor")
    assert done.returncode == 1
    assert "self-test: RuntimeError: no such thing" in done.stdout
    assert "FAILED" in done.stdout


@pytest.mark.parametrize("command", ["--quiet envs", "envs --quiet", "-q data ls", "data ls -q"])
def test_quiet_says_nothing_in_either_place(offmarl, command):
    done = offmarl(command)
    assert done == (0, "", "")


def test_quiet_leaves_json_and_errors(offmarl):
    assert offmarl("envs --quiet --json").stdout.startswith('{"envs"')
    done = offmarl("decompose --quiet --method mecca")
    assert done.returncode == 2
    assert done.stderr.startswith("offmarl: ")
    assert offmarl("envs").stdout.startswith("environments"), "the next command speaks again"
