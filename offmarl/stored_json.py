"""Reading the JSON file that makes a folder a dataset, a run or an exported policy: what can be wrong with it.

It imports no library: exported policies are read with it too, where only PyTorch and safetensors need be there.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from offmarl.errors import DataError

if TYPE_CHECKING:
    from pydantic import BaseModel

Model = TypeVar("Model", bound="BaseModel")


def read_object(path: Path, folder_kind: str, file_kind: str) -> dict[str, Any]:
    """Read the object in `path`: a `file_kind` ("record of a run") that makes its folder a `folder_kind` ("run").

    Raises `DataError` for a file that is missing, is not JSON or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path.parent} is no {folder_kind}: it has no {path.name}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no {file_kind}: it holds a {type(content).__name__}, expected an object")
    return content


def read_versioned(
    path: Path, folder_kind: str, file_kind: str, model: type[Model], newest: int
) -> tuple[Model, dict[str, Any]]:
    """Read `path` like `read_object`, and check that it is a `model` of a schema version up to `newest`.

    Returns the model and the object as it stands in the file. Raises `DataError` also for a file of a newer
    offmarl, and for a field that is missing or wrong.
    """
    from pydantic import ValidationError

    content = read_object(path, folder_kind, file_kind)
    version = content.get("schema_version")
    if isinstance(version, int) and version > newest:
        raise DataError(
            f"{path} has schema version {version}; this offmarl reads up to {newest}: install a newer offmarl"
        )
    try:
        return model.model_validate(content), content
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            raise DataError(f"{path} is no {file_kind}: it has no field '{where}'") from error
        raise DataError(f"{path} is no {file_kind}: field '{where}': {problem['msg']}") from error
