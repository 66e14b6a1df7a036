"""What MkDocs cannot do by itself: pages that are made of the code, and files that are not on the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from offmarl.cli_reference import commands_page

RESULTS = "Results"  # the section in which tables of benchmarks appear by themselves
TABLE = "Written by `offmarl "
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_config(config: MkDocsConfig) -> None:
    """Put every table that `offmarl bench --table` wrote into the navigation."""
    (section,) = (entry[RESULTS] for entry in config.nav if RESULTS in entry)
    listed = {page for entry in section for page in ([entry] if isinstance(entry, str) else entry.values())}
    for path in sorted(Path(config.docs_dir).glob("*.md")):
        if path.name not in listed and TABLE in path.read_text(encoding="utf-8"):
            section.append(path.name)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of all commands."""
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name files of the checkout, to which the site cannot link."""
    return OUTSIDE.sub(r"\1", markdown)
