"""The documentation site: it builds without a warning, and everything that it tells people to type works."""

import json
import logging
import re
import runpy
import shlex
from pathlib import Path

import pytest
from documents import blocks, commands, smaller
from typer import Context

from offmarl import cli_reference

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TYPED = (
    "install",
    "first-run",
    "concepts",
    "own-environment",
    "own-dataset",
    "own-decomposer",
    "own-learner",
    "many-agents",
    "without-a-simulator",
)
OWN = [page for page in TYPED if page.startswith("own-")]
LONGEST_EXAMPLE = 60  # lines
MAGENT = ("offmarl tournament",)  # needs an extra, and has tests of its own


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> Path:
    """Behaviour that one page trained is there for the next."""
    return tmp_path_factory.mktemp("policies")


@pytest.fixture
def page_runs(offmarl, home, policies, tmp_path, monkeypatch):
    """Type the commands of a page in an empty folder, with an empty home but for the trained behaviour."""

    def run(page: str, typed: list[str]) -> None:
        own = tmp_path / "home"
        own.mkdir()
        (own / "policies").symlink_to(policies)
        (tmp_path / "recipes").symlink_to(ROOT / "recipes")
        monkeypatch.chdir(tmp_path)
        for block in blocks(page, "python"):
            assert block.title, "an example is a file with a name"
            (tmp_path / block.title).write_text(block.code)
        for command in typed:
            program, *arguments = shlex.split(smaller(command))
            if program == "python":
                runpy.run_path(arguments[0], run_name="__main__")
                continue
            assert program == "offmarl", command
            done = offmarl(shlex.join(arguments), own)
            assert done.returncode == 0, f"{command}\n{done.stderr}"

    return run


@pytest.mark.parametrize("name", TYPED)
def test_the_commands_of_a_page_work(name, page_runs):
    page = (DOCS / f"{name}.md").read_text()
    typed = commands(page)
    assert typed
    page_runs(page, typed)


def test_the_example_of_every_command_works(page_runs):
    page = cli_reference.commands_page()
    typed = [command for command in commands(page) if not command.startswith(MAGENT)]
    assert len(typed) > 15
    page_runs(page, typed)


def test_the_commands_that_measure_benchmarks_plan_them(page_runs):
    page = (DOCS / "benchmarks.md").read_text()
    typed = {re.sub(r" --(out|table|jobs) \S+| --dry-run", "", command) for command in commands(page)}
    assert len(typed) >= 2
    page_runs("", [f"{command} --dry-run" for command in sorted(typed)])


@pytest.mark.parametrize("name", OWN)
def test_an_example_is_short(name):
    (example,) = blocks((DOCS / f"{name}.md").read_text(), "python")
    assert example.code.count("\n") < LONGEST_EXAMPLE


def test_every_block_has_a_language_or_is_no_command():
    """What people could type stands in a block that these tests run."""
    for path in DOCS.glob("*.md"):
        for block in blocks(path.read_text()):
            if block.language == "":
                assert not re.search(r"^(offmarl|python) ", block.code, re.MULTILINE), (
                    f"{path.name}: {block.code}"
                )


def test_every_command_has_an_example_of_itself_and_explains_its_options():
    found = dict(cli_reference.commands())
    assert {
        "offmarl collect",
        "offmarl doctor",
        "offmarl data import",
        "offmarl credit figures",
    } <= found.keys()
    for path, command in found.items():
        context = Context(command, info_name=path)
        assert command.epilog.startswith(path), f"{path} has no example: register it with `add`"
        assert command.epilog in command.get_help(context)
        options = {option for param in command.params for option in param.opts}
        assert {"--json", "--quiet", "-q"} <= options, path
        for param in command.params:
            record = param.get_help_record(context)
            assert record is None or record[1].strip(), f"{path}: {param.name} has no help"


def test_the_first_page_of_help_fits_a_screen(offmarl):
    lines = offmarl("--help", columns=80).stdout.rstrip().splitlines()
    assert len(lines) < 24, "a prompt follows"
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Usage: offmarl ")
    assert not [line for line in lines[1:] if line.endswith("...")], "a command's purpose is cut"


def test_the_site_builds_without_a_warning(tmp_path, caplog, monkeypatch):
    pytest.importorskip("mkdocstrings_handlers.python")
    pytest.importorskip("material")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    with caplog.at_level(logging.WARNING):
        build(config)
    assert [record.message for record in caplog.records if record.name.startswith("mkdocs")] == []
    index = json.loads((tmp_path / "search" / "search_index.json").read_text())
    found = {entry["location"] for entry in index["docs"]}
    assert {"commands.html#offmarl-collect", "api.html#offmarl.data.writer.Writer"} <= found
    assert not list((tmp_path / "results").glob("**/*.json")), "the cells of benchmarks are no pages"
    for path in DOCS.glob("*.md"):
        assert f'href="{path.stem}.html"' in (tmp_path / "index.html").read_text(), (
            f"{path.name} is not listed"
        )
