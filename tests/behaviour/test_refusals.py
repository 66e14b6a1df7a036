"""What `collect` refuses before it spends a minute on training."""

import pytest

from offmarl.behaviour.collection import CollectRequest, collect_dataset
from offmarl.errors import UsageError
from offmarl.reporter import Silent


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"env": "mpe spread"}, "unknown environment 'mpe spread'"),
        ({"name": "mine"}, "'mine' is no dataset id"),
        ({"free_riders": 9}, "--free-riders 9: expected 1 to 3"),
        ({"free_riders": 1, "quality": "medium-replay"}, "choose another --quality"),
        ({"num_envs": 9, "quality": "medium-replay"}, "--set behaviour.num_envs=9"),
        ({"env": "magent_battle", "backend": "nonsense"}, "unknown backend 'nonsense'"),
        ({"behaviour": {"num_envs": 0}}, "behaviour.num_envs=0"),
        ({"behaviour": {"learning_rate": -1}}, "behaviour.learning_rate=-1"),
        ({"behaviour": {"gamma": 2}}, "behaviour.gamma=2"),
        ({"behaviour": {"hidden": []}}, "behaviour.hidden="),
        ({"behaviour": {"reward_sd": 0}}, "behaviour.reward_sd=0"),
        ({"behaviour": {"checkpoint_every": 0}}, "behaviour.checkpoint_every=0"),
        ({"behaviour": {"noise": -0.1}}, "behaviour.noise=-0.1"),
        ({"behaviour": {"steps": 100, "warm_up": 500}}, "behaviour.steps=100: the first checkpoint"),
        ({"behaviour": {"steps": 249, "warm_up": 200}}, "first checkpoint comes at step 250"),
    ],
)
def test_wrong_requests_write_nothing(wrong, message, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match=message):
        collect_dataset(CollectRequest(**{"env": "mpe_spread", "out": tmp_path / "out", **wrong}), Silent())
    assert list(tmp_path.iterdir()) == []


def test_no_flag_replaces_what_is_no_dataset(tmp_path):
    (tmp_path / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no dataset"):
        collect_dataset(CollectRequest("mpe_spread", "random", 10, out=tmp_path, overwrite=True), Silent())
    assert (tmp_path / "chapter.txt").read_text() == "years of work"
