"""The user's own map of who owns which variable, for decompositions that begin with what is an agent's own."""

from pathlib import Path

from offmarl.errors import UsageError
from offmarl.settings import parse_yaml

EXAMPLE = "expected lines such as 'x0: agent_0', '*.prey.*: nobody'"


def read_owner(path: Path) -> dict[str, str]:
    """Read a YAML or JSON file that maps variables, or patterns of their names, to an agent or `nobody`.

    Which variables and agents exist is for `input_layout` to say. Raises `UsageError` for a file that is not
    there or is not such a map.
    """
    try:
        given = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--owner {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"--owner {path}: neither YAML nor JSON ({error})") from error
    if not isinstance(given, dict) or not given:
        found = "nothing" if not given else f"a {type(given).__name__}"
        raise UsageError(f"--owner {path}: the file holds {found}; {EXAMPLE}")
    for variable, owner in given.items():
        if not isinstance(variable, str) or not isinstance(owner, str):
            raise UsageError(
                f"--owner {path}: '{variable}: {owner}' is no name and name (quote it?); {EXAMPLE}"
            )
    return given
