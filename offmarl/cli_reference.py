"""The page of all commands, made of the commands themselves."""

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from typer import Context
from typer.main import get_command

from offmarl.cli import app

ENDINGS = re.compile(r"<(str|path|int|float)( range)?>")
"""What the parser calls a value; people call it by its kind."""
MEANING = {ord(sign): f"&#{ord(sign)};" for sign in "|[]*_"}  # signs that mean something to Markdown
INTRODUCTION = """# Commands

Every command has `--help`, which says what stands here. `offmarl --quiet COMMAND` is `offmarl COMMAND --quiet`.
Hyper-parameters have no flags of their own: `--set section.key=value` reaches all of them, and an unknown key is
refused with the nearest known ones. `offmarl --install-completion` makes a shell complete all this.
"""


def commands_page() -> str:
    """Markdown: a section for each command, with its arguments, its options and its example."""
    return "\n".join([INTRODUCTION, *(_section(path, command) for path, command in commands())])


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, as it is typed, in the order of `offmarl --help`."""
    yield from _within("offmarl", get_command(app))


def _within(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from _within(f"{path} {name}", inner)


def _section(path: str, command: Any) -> str:
    context = Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    lines = [f"## {path}", "", command.help, "", f"`{usage}`", ""]
    if command.epilog:
        lines += ["```bash", command.epilog, "```", ""]
    lines += ["| argument | meaning |", "|---|---|"]
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is not None and param.name != "help":
            flag = _cell(ENDINGS.sub(_kind, record[0]))
            lines.append(f"| <code>{flag}</code> | {_cell(record[1])} |")
    return "\n".join([*lines, ""])


def _kind(match: re.Match[str]) -> str:
    return {"str": "TEXT", "path": "PATH"}.get(match[1], "NUMBER")


def _cell(text: str) -> str:
    """Text as a cell of a table can hold it."""
    return escape(text, quote=False).translate(MEANING)
