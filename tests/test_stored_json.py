import json

import pytest
from pydantic import BaseModel

from offmarl.errors import DataError
from offmarl.stored_json import read_versioned


class Recorded(BaseModel):
    steps: int


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "run is no run: it has no run.json"),
        ("{", "run.json cannot be read as JSON: "),
        (b"\xff", "run.json cannot be read as JSON: "),
        ("[1]", "run.json is no record of a run: it holds a list, expected an object"),
        (
            '{"schema_version": 3, "steps": "x"}',
            "schema version 3; this offmarl reads up to 2: install a newer",
        ),
        ("{}", "run.json is no record of a run: it has no field 'steps'"),
        ('{"steps": "x"}', "run.json is no record of a run: field 'steps': Input should be a valid integer"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, message):
    path = tmp_path / "run" / "run.json"
    path.parent.mkdir()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as raised:
        read_versioned(path, "run", "record of a run", Recorded, newest=2)
    assert message in str(raised.value)


def test_the_object_comes_back_as_it_was_written(tmp_path):
    content = {"schema_version": 2, "steps": 5, "of a later minor version": True}
    (tmp_path / "run.json").write_text(json.dumps(content))
    model, stored = read_versioned(tmp_path / "run.json", "run", "record of a run", Recorded, newest=2)
    assert model.steps == 5
    assert stored == content
