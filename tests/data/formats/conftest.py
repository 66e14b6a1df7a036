import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `foreign`

from foreign import vault_experience, write_ours, write_vault

from offmarl.data.formats.transfer import ImportRequest, import_dataset
from offmarl.data.store import Dataset
from offmarl.reporter import Silent


class Listening(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def bring(tmp_path):
    """Import something below `tmp_path`; options as `ImportRequest` has them."""

    def bring(path: Path, form: str, **options) -> Dataset:
        options.setdefault("name", "theirs/data-v0")
        return import_dataset(
            ImportRequest(path, form, out=options.pop("out", tmp_path / "imported"), **options), Listening()
        )

    return bring


@pytest.fixture(scope="session")
def flashbax_vault(tmp_path_factory) -> tuple[Path, dict]:
    """A vault that flashbax wrote, and what is in it."""
    experience = vault_experience()
    return write_vault(tmp_path_factory.mktemp("vaults"), experience), experience


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> dict[bool, Dataset]:
    """Agents of different widths; episodes of different lengths; optional arrays present only when discrete."""
    root = tmp_path_factory.mktemp("mixed")
    return {discrete: write_ours(root / f"{discrete}", discrete) for discrete in (False, True)}
