import subprocess
from pathlib import Path

import pytest

from offmarl.errors import UsageError
from offmarl.native import library as native
from offmarl.native.library import Library, Unavailable, bfloat16, cache_folder, kernels, library


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """Build as if for the first time, in a cache folder of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return library.__wrapped__


def compiler(tmp_path, monkeypatch, script):
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))


@pytest.mark.skipif(not isinstance(library(), Library), reason=str(library()))
def test_it_is_built_once(anew, monkeypatch):
    commands = []
    run = subprocess.run

    def counted(command, **options):
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    first, second = anew(), anew()
    assert first.lanes == second.lanes in (4, 8, 16)
    assert sum("-shared" in command for command in commands) == 1
    assert [path.suffix for path in cache_folder().iterdir()] == [".so"]


def test_without_a_compiler_pytorch_works(anew, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert str(anew()) == "PyTorch's operations (no C compiler found)"


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(anew, tmp_path, monkeypatch):
    script = (
        'if [ "$1" = --version ]; then echo odd 1.0; else echo "error: no such processor" >&2; exit 1; fi'
    )
    compiler(tmp_path, monkeypatch, script)
    found = anew()
    assert isinstance(found, Unavailable)
    assert found.reason.endswith("compiler failed: error: no such processor")
    assert list(cache_folder().iterdir()) == []


def test_what_a_compiler_makes_of_it_must_load(anew, tmp_path, monkeypatch):
    compiler(
        tmp_path,
        monkeypatch,
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo text > "$2"; shift; done; echo odd 1.0',
    )
    assert isinstance(anew(), Unavailable)


def test_a_cache_that_others_can_write_to_is_not_trusted(anew):
    cache_folder().chmod(0o777)
    found = anew()
    assert isinstance(found, Unavailable)
    assert "can be written to by others" in found.reason


def test_a_cache_that_cannot_be_written_is_no_error(anew, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert isinstance(anew(), Unavailable)


def test_who_insists_on_compiled_code_is_told(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: Unavailable("no C compiler found"))
    with kernels("auto") as worker:
        assert worker == "PyTorch's operations (no C compiler found)"
        assert native.in_use() is None
    with (
        pytest.raises(UsageError, match=r"no C compiler found\): set train\.kernels=auto"),
        kernels("compiled"),
    ):
        pass


def test_bfloat16_needs_compiled_code_and_units(monkeypatch):
    refused = r"train\.matmul_precision=bfloat16: nothing compiled runs the networks; leave it at auto"
    with kernels("torch"), pytest.raises(UsageError, match=refused), bfloat16():
        pass
    monkeypatch.setattr(native, "library", lambda: Library(None, "cc", lanes=8, bfloat16=False))
    with pytest.raises(UsageError, match="this processor has no units for it"), bfloat16():
        pass
    with bfloat16(False):
        assert not native.rounds()


@pytest.mark.skipif(not isinstance(library(), Library), reason=str(library()))
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="nothing here says what the processor can do")
def test_units_are_found_where_the_processor_has_them():
    """Otherwise the tests of bfloat16 would be left out unnoticed."""
    flags = Path("/proc/cpuinfo").read_text().split()
    assert library().bfloat16 == ("avx512_bf16" in flags)
