import time
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from offmarl.credit.relabel import decompose
from offmarl.data.store import Dataset
from offmarl.errors import UsageError
from offmarl.report import film
from offmarl.report.charts import AGENT_COLOURS
from offmarl.report.episode import MOST_STEPS, ShownEpisode, stored_episode, telling_episodes
from offmarl.report.film import film_frames, write_film
from offmarl.report.scene import Body, Scene


@pytest.fixture(scope="module")
def hunt(random_dataset):
    """Predators and a prey, decomposed."""
    with Dataset.open(random_dataset("mpe_tag_individual", 300, 4)) as dataset:
        yield dataset, decompose(dataset, "additive", {"steps": 30})


def shown(reward, name="macca", agents=2) -> ShownEpisode:
    """Agents that stand still, one left and one right, and are paid `reward` [T, N]."""
    reward = np.asarray(reward, float)
    frames = len(reward) + 1
    position = np.zeros((frames, agents, 2))
    position[:, :, 0] = np.linspace(-1, 1, agents)
    names = tuple(f"agent_{k}" for k in range(agents))
    scene = Scene(tuple(Body(one, "agent", 0.1) for one in names), position)
    return ShownEpisode("episode 0", "somewhere", names, scene, reward.sum(1), reward, name)


def count(image: Image.Image, colour: str, first_column: int) -> int:
    """Pixels of exactly this colour from a column on."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return int((np.asarray(image)[:, first_column:] == (red, green, blue)).all(-1).sum())


def test_a_film_has_a_frame_for_every_step_and_one_more(hunt, tmp_path):
    dataset, report = hunt
    episode = stored_episode(dataset, 2, report)
    for suffix in (".gif", ".webp"):
        path = tmp_path / f"film{suffix}"
        assert write_film(episode, path) == 26
        with Image.open(path) as image:
            assert image.n_frames == 26
            first = np.asarray(image.convert("RGB")).astype(int)
            image.seek(20)
            image.load()
            assert image.info["duration"] == 100  # milliseconds
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - first).max() > 100


def test_mp4_where_ffmpeg_is_installed(hunt, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    dataset, report = hunt
    write_film(stored_episode(dataset, 0, report), tmp_path / "film.mp4")
    frames, _ = ffmpeg.count_frames_and_secs(str(tmp_path / "film.mp4"))
    assert frames == 26


def test_mp4_without_ffmpeg_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(film, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install .*mp4"):
        write_film(shown([[1, 1]]), tmp_path / "film.mp4")
    with pytest.raises(UsageError, match=r"\.gif"):
        write_film(shown([[1, 1]]), tmp_path / "film.avi")
    assert list(tmp_path.iterdir()) == []


def test_bars_are_as_long_as_what_was_earned():
    frames = list(film_frames(shown([[1, 0], [2, 1], [4, -2]])))
    panel = frames[0].width - film.PANEL
    first = [count(frame, AGENT_COLOURS[0], panel) for frame in frames]
    assert first[0] == 0  # nothing was earned yet
    assert first[2] == pytest.approx(2 * first[1], rel=0.1)
    assert first[3] == pytest.approx(4 * first[1], rel=0.1)
    second = [count(frame, AGENT_COLOURS[1], panel) for frame in frames]
    assert second[1] == 0
    assert second[3] == pytest.approx(2 * second[2], rel=0.15)


def test_agents_are_drawn_where_they_are():
    episode = shown([[0, 0]])
    pixels = np.asarray(next(film_frames(episode)))
    for agent, colour in ((0, AGENT_COLOURS[0]), (1, AGENT_COLOURS[1])):
        rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        column = np.argwhere((pixels == rgb).all(-1))[:, 1].mean()
        left, right, *_ = episode.scene.limits
        wide = film.HEIGHT - film.FOOT - film.MARGIN
        place = film.MARGIN + wide * (episode.scene.position[0, agent, 0] - left) / (right - left)
        assert column == pytest.approx(place, abs=2)


def test_what_the_task_draws_itself_is_shown():
    pictures = np.zeros((2, 30, 60, 3), np.uint8)
    pictures[1, :, :, 0] = 200
    still = shown([[1, 1]])
    episode = ShownEpisode(
        "episode 0", "x", still.agents, None, still.team_reward, still.reward, "mean", pictures=pictures
    )
    before, after = (np.asarray(frame) for frame in film_frames(episode))
    assert tuple(before[100, 100]) == (0, 0, 0)
    assert tuple(after[100, 100]) == (200, 0, 0)


def test_an_episode_of_which_nobody_knows_where_anything_is(random_dataset, tmp_path):
    with Dataset.open(random_dataset("scm_a", 50, 2)) as dataset:
        episode = stored_episode(dataset, 0)
    assert episode.scene is None
    with pytest.raises(UsageError, match="where the agents are"):
        write_film(episode, tmp_path / "film.gif")


def test_the_rewards_beside_the_world_are_those_of_the_decomposition(hunt):
    dataset, report = hunt
    first, last = dataset.episode_start[3:5].tolist()
    episode = stored_episode(dataset, 3, report)
    np.testing.assert_array_equal(episode.reward, report.credit.reward[first : last - 1].numpy())
    np.testing.assert_array_equal(episode.truth, dataset.read("agent_reward")[first : last - 1].numpy())
    assert stored_episode(dataset, 3).reward_name == "true"
    with pytest.raises(UsageError, match="episodes 0 to"):
        stored_episode(dataset, dataset.card.episodes)


def test_telling_episodes_are_the_median_the_best_and_the_worst(hunt):
    dataset, report = hunt
    start = dataset.episode_start
    total = [float(dataset.read("team_reward")[a:b].sum()) for a, b in pairwise(start.tolist())]
    chosen = telling_episodes(dataset, None, 3)
    by_reason = {reason: total[number] for number, reason in chosen.items()}
    assert by_reason["of the highest return"] == max(total)
    assert by_reason["of the lowest return"] == min(total)
    assert by_reason["of median return"] == sorted(total)[len(total) // 2]
    assert len(telling_episodes(dataset, None, 5)) == 5
    assert len(telling_episodes(dataset, report, 5)) == 5  # only one was held out: it comes first
    assert stored_episode(dataset, next(iter(telling_episodes(dataset, report, 5))), report).title.endswith(
        "held out of the fit)"
    )
    assert len(telling_episodes(dataset, None, 1_000)) <= dataset.card.episodes


def test_long_episodes_are_cut(random_dataset):
    with Dataset.open(random_dataset("mpe_spread", 620, 1, horizon=620)) as dataset:
        episode = stored_episode(dataset, 0)
    assert episode.steps == MOST_STEPS
    assert len(episode.scene.position) == MOST_STEPS + 1
    assert "620" in episode.note


def test_drawing_is_fast(hunt):
    dataset, report = hunt
    episode = stored_episode(dataset, 0, report)
    list(film_frames(episode))
    started = time.process_time()
    drawn = len(list(film_frames(episode)))
    assert drawn / (time.process_time() - started) > 60  # measured 190
