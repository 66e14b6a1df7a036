"""Where offmarl keeps its files on this machine."""

import os
from pathlib import Path


def offmarl_home() -> Path:
    """The folder `$OFFMARL_HOME`, by default `~/.offmarl`."""
    return Path(os.environ.get("OFFMARL_HOME") or "~/.offmarl").expanduser()
