"""The formats that offmarl reads and writes, by name."""

from pathlib import Path

from offmarl.data.formats import d3rlpy, minari, omar, pymarl, vault
from offmarl.data.formats.base import Format
from offmarl.errors import DataError, UsageError, unknown_name

FORMATS = {
    form.name: form
    for form in (
        Format("omar", omar.recognise, omar.OmarSource),
        Format("pymarl", pymarl.recognise, pymarl.PymarlSource, pymarl.write),
        Format("vault", vault.recognise, vault.VaultSource, vault.write, vault.foreign),
        Format("minari", minari.recognise, minari.MinariSource, minari.write, minari.foreign),
        Format("d3rlpy", d3rlpy.recognise, d3rlpy.D3rlpySource, d3rlpy.write, d3rlpy.foreign),
    )
}


def find_format(name: str) -> Format:
    """The format `name`. Raises `UsageError` with near names where there is none."""
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    return FORMATS[name]


def find_exporter(name: str) -> Format:
    """A format that can be written. Raises `UsageError` where there is none of that name, or it is only read."""
    form = find_format(name)
    if form.write is None:
        written = ", ".join(known.name for known in FORMATS.values() if known.write)
        raise UsageError(f"format {name} can be read, not written; written are {written}")
    return form


def check_recognised(form: Format, path: Path) -> None:
    """Raise `DataError` where `path` is missing, or looks like another format and not like this one."""
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if form.recognise(path):
        return
    likely = [other.name for other in FORMATS.values() if other.recognise(path)]
    if likely:
        raise DataError(
            f"{path} is not in the format {form.name}: it looks like --format {' or '.join(likely)}"
        )
