import json

import pytest

from offmarl.atomic import replace_folder, replacing, write_json


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "report.json"
    write_json(target, {"version": 1})

    def fail_half_way():
        with replacing(target) as temporary:
            temporary.write_text("half of")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as failure:
        fail_half_way()
    assert failure.value.filename == str(target), "the person is told which file"
    assert json.loads(target.read_text()) == {"version": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "scores.json", {"score": float("nan")})
    assert not (tmp_path / "scores.json").exists()


def test_replacing_a_folder_leaves_only_the_new_one(tmp_path):
    for name, text in (("final", "old"), ("new", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(text)
    replace_folder(tmp_path / "new", tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "content").read_text() == "new"


def test_a_link_to_a_folder_is_replaced_and_not_what_it_points_to(tmp_path):
    for name in ("elsewhere", "first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    (tmp_path / "final").symlink_to(tmp_path / "elsewhere")
    for name in ("first", "second"):
        replace_folder(tmp_path / name, tmp_path / "final")
        assert (tmp_path / "final" / "content").read_text() == name
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "second") == [
            "elsewhere",
            "final",
        ]
    assert (tmp_path / "elsewhere" / "content").read_text() == "elsewhere"
