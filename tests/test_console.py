"""What reaches a terminal, a pipe and a program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offmarl import cli
from offmarl.console import Terminal


def test_a_table_on_a_pipe_is_as_wide_as_it_needs_and_has_no_colours(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    Terminal().table("wide", ["id", "what"], [["x" * 90, "y" * 90]])
    printed = capsys.readouterr().out
    assert "x" * 90 in printed
    assert "y" * 90 in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("command", "function", "advice"),
    [
        ("collect --env mpe_spread", "offmarl.behaviour.collection.collect_dataset", "same command goes on"),
        ("train --dataset toy/x-v0", "offmarl.training.offline.train_offline", "--resume goes on"),
        ("data ls", "offmarl.data.catalog.list_datasets", "stopped"),
    ],
)
def test_ctrl_c_says_how_to_go_on(command, function, advice, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    class Found:
        card = type("Card", (), {"id": "toy/x-v0"})

    monkeypatch.setattr("offmarl.data.catalog.find_dataset", lambda _: Found)
    monkeypatch.setattr(function, interrupted)
    monkeypatch.setattr(sys, "argv", ["offmarl", *command.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    message = capsys.readouterr().err.strip()
    assert message.startswith("offmarl: stopped")
    assert advice in message
    assert "\n" not in message


def test_a_figure_that_cannot_be_drawn_is_refused_before_the_evaluation(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["offmarl", "evaluate", "--figure", "scores.xyz"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "--figure scores.xyz: expected a name that ends in .png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("offmarl tr", "train"), ("offmarl data im", "import"), ("offmarl train --lea", "--learner")],
)
def test_a_shell_completes_commands_and_flags(typed, offered):
    """What bash asks for after `offmarl --install-completion`."""
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = subprocess.run(
        [Path(sys.executable).parent / "offmarl"],
        capture_output=True,
        text=True,
        env={**os.environ, **words, "_OFFMARL_COMPLETE": "complete_bash"},
        timeout=60,
    )
    assert done.stdout.split() == [offered], done.stderr
