"""The commands of docs/formats.md are typed here, on small files of the same names."""

import re
from pathlib import Path

from foreign import write_omar, write_pymarl

PAGE = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()


def test_the_commands_of_the_page_work(offmarl, succeed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_omar(tmp_path / "simple_spread" / "expert" / "seed_0_data")
    (tmp_path / "offline_datasets").mkdir()
    write_pymarl(tmp_path / "offline_datasets" / "3m_expert.h5")
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 9
    for command in commands:
        done = offmarl(command.removeprefix("offmarl "))
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    transitions = {entry["id"]: entry["transitions"] for entry in succeed("data ls")["datasets"]}
    assert transitions == {
        "mpe_spread_omar/omar-expert-v0": 75,
        "mpe_spread_omar/from-minari-v0": 75,
        "mpe_spread_omar/from-d3rlpy-v0": 75,
        "my_3m/cfcql-expert-v0": 12,
        "my_3m/from-vault-v0": 12,
    }


def test_the_notes_that_the_page_announces_are_printed(offmarl, tmp_path):
    write_pymarl(tmp_path / "m.h5")
    done = offmarl(f"data import --format pymarl {tmp_path / 'm.h5'} --env my_3m --name my_3m/noted-v0")
    assert "note: the variant of CFCQL" in done.stdout
    assert "note: 'my_3m' is no environment of offmarl" in done.stdout
