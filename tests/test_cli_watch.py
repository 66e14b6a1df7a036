import json

import numpy as np
import pytest
from PIL import Image

from offmarl.data.store import Dataset

DATASET = "mpe_tag_individual/random-v0"


@pytest.fixture(scope="module")
def run(succeed) -> str:
    """A dataset, and a run on it."""
    succeed("collect --env mpe_tag_individual --quality random --steps 100 --num-envs 2")
    return succeed("train --learner bc --rewards team --steps 5 --set train.batch_size=16")["run"]


def test_an_episode_of_a_dataset(run, succeed, home, tmp_path):
    told = succeed(f"watch {DATASET} --episode 1 --out {tmp_path / 'one.webp'}")
    with Dataset.open(home / "datasets" / DATASET) as dataset:
        first, end = dataset.episode_start[1:3].tolist()
        earned = float(dataset.read("team_reward")[first : end - 1].sum())
    assert (told["episode"], told["frames"], told["rewards"]) == (1, 26, "true")
    assert told["team_return"] == pytest.approx(earned, abs=1e-4)
    with Image.open(tmp_path / "one.webp") as film:
        assert film.n_frames == 26


def test_the_latest_run_plays_and_says_where_the_film_is(run, offmarl, home):
    done = offmarl("watch")
    assert done.returncode == 0, done.stderr
    assert run in done.stderr
    film = home / "figures" / run / "episode-0.gif"
    assert f"wrote {film}" in done.stdout
    with Image.open(film) as image:
        assert image.n_frames == 26
    again = json.loads(offmarl(f"watch {run} --json").stdout)
    other = json.loads(offmarl(f"watch {run} --seed 1 --json").stdout)
    assert again["source"] == other["source"] == run
    assert json.loads(offmarl(f"watch {run} --json").stdout) == again
    assert again["team_return"] != other["team_return"]


def test_the_bars_are_of_the_decomposition_that_was_asked_for(run, succeed, home):
    succeed(f"decompose --dataset {DATASET} --method additive --set credit.steps=5")
    assert succeed(f"watch {DATASET}")["rewards"] == "additive"
    assert succeed(f"watch {DATASET} --rewards additive --episode 0")["rewards"] == "additive"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("mpe_tag_individual/randon-v0", DATASET),
        (f"{DATASET}/bc-teem-s0", f"did you mean {DATASET}/bc-team-s0"),
        (f"{DATASET} --episode 999", "episodes 0 to"),
        (f"{DATASET} --out film.avi", ".gif"),
        (f"{DATASET} --seed 1", "--seed 1 is for runs"),
        (f"{DATASET} --rewards nobody", "nobody"),
    ],
)
def test_wrong_use_is_told_in_a_line(run, offmarl, arguments, said):
    done = offmarl(f"watch {arguments}")
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_task_without_positions_draws_itself(succeed, home, tmp_path):
    module = "pettingzoo:mpe2.simple_spread_v3"
    succeed(
        f"collect --env spread --backend {module} --quality random --steps 60 --num-envs 2 --name own/spread-v0"
    )
    run = succeed(
        "train --dataset own/spread-v0 --learner bc --rewards team --steps 5 --set train.batch_size=16"
    )["run"]
    drawn = []
    for episode in (0, 1):
        told = succeed(f"watch {run} --episode {episode} --out {tmp_path / 'own.webp'}")
        assert told["frames"] == 26
        with Image.open(tmp_path / "own.webp") as film:
            film.seek(12)
            drawn.append(np.asarray(film.convert("RGB"))[20:380, 20:380])
    assert all(len(np.unique(world.reshape(-1, 3), axis=0)) > 20 for world in drawn)  # something was drawn
    assert (drawn[0] != drawn[1]).any(), "every episode draws itself"
