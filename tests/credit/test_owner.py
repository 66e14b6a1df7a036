import json

import pytest
from recording import HASTY

from offmarl.credit.owner import read_owner
from offmarl.credit.registry import require_setting
from offmarl.credit.relabel import decompose
from offmarl.errors import UsageError


def test_yaml_and_json_say_the_same(tmp_path):
    owner = {"x0": "agent_0", "*.prey.*": "nobody"}
    (tmp_path / "owner.yaml").write_text("x0: agent_0\n'*.prey.*': nobody\n")
    (tmp_path / "owner.json").write_text(json.dumps(owner))
    assert read_owner(tmp_path / "owner.yaml") == read_owner(tmp_path / "owner.json") == owner


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file holds nothing"),
        ("{}", "the file holds nothing"),
        ("- x0\n- x1\n", "the file holds a list"),
        ("x0: 3", "'x0: 3' is no name and name"),
        ("x0:", "'x0: None' is no name and name"),
        ("on: agent_0", "'True: agent_0' is no name and name"),
        ("x0: [agent_0", "neither YAML nor JSON"),
        ("*.prey: nobody", "neither YAML nor JSON"),
        ("x0: 2020-13-45", "neither YAML nor JSON (month must be in 1..12)"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, problem):
    path = tmp_path / "owner.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_owner(path)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_owner(tmp_path / "nothing.yaml")
    with pytest.raises(UsageError, match="directory"):
        read_owner(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match="neither YAML nor JSON"):
        read_owner(tmp_path / "bytes")


def test_the_map_is_kept_with_the_decomposition(dataset):
    owner = {"agent_0.x0": "agent_1"}
    decompose(dataset, values=HASTY | {"owner": owner})
    about = json.loads((dataset.folder / "credit" / "macca.json").read_text())
    assert about["config"]["owner"] == owner
    with pytest.raises(UsageError, match="agent_9"):
        decompose(dataset, values=HASTY | {"owner": {"agent_0.x0": "agent_9"}}, name="other")


def test_methods_that_ask_no_owner_take_no_map():
    for method in ("macca", "additive", "shapley"):
        require_setting(method, "owner", "--owner")
    for method in ("macca-paper", "difference", "mean"):
        with pytest.raises(UsageError, match=f"'{method}'; it is for: macca, additive, shapley"):
            require_setting(method, "owner", "--owner")
