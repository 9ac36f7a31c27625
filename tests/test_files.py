import errno
import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab import files
from gptlab.errors import GptlabError
from gptlab.files import append_json_line, fsync_directory, fsync_file, write_durably
from gptlab.untrusted import read_json_lines, torn_bytes

ROWS = st.lists(
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=3), max_size=5
)


@given(rows=ROWS)
def test_rows_are_read_as_they_were_written(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    for row in rows:
        append_json_line(path, row)
    assert list(read_json_lines(path)) == rows


def write_and_cut(path, rows, data):
    """Write `rows` and cut the file anywhere; return its bytes before the cut and the number of bytes kept."""
    for row in rows:
        append_json_line(path, row)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    return whole, cut


@given(rows=ROWS.filter(bool), data=st.data())
def test_a_truncated_file_gives_its_complete_rows(rows, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    whole, cut = write_and_cut(path, rows, data)
    assert list(read_json_lines(path)) == rows[: whole[:cut].count(b"\n")]
    assert torn_bytes(path) == cut - (whole[:cut].rfind(b"\n") + 1)


@given(rows=ROWS.filter(bool), data=st.data())
def test_a_torn_line_is_dropped_before_the_next_row_is_appended(rows, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("torn") / "rows.jsonl"
    whole, cut = write_and_cut(path, rows, data)
    append_json_line(path, {"new": 1})
    assert list(read_json_lines(path)) == [*rows[: whole[:cut].count(b"\n")], {"new": 1}]


def test_a_missing_file_has_no_rows(tmp_path):
    assert list(read_json_lines(tmp_path / "nothing")) == []
    assert torn_bytes(tmp_path / "nothing") == 0


@pytest.mark.parametrize("line", ["{torn", "[1]", "7", ""])
def test_a_damaged_line_elsewhere_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + line + '\n{"b": 2}\n')
    with pytest.raises(GptlabError, match=r"rows\.jsonl:2: "):
        list(read_json_lines(path))


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        append_json_line(tmp_path / "rows.jsonl", {"a": float("nan")})


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_replaced_and_its_target_is_never_written(tmp_path, link):
    other = tmp_path / "other"
    other.write_text("precious")
    link(other, tmp_path / "a.json")
    write_durably(tmp_path / "a.json", "new")
    assert (other.read_text(), (tmp_path / "a.json").read_text()) == ("precious", "new")
    assert not (tmp_path / "a.json").is_symlink()


def test_a_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "a.json"
    write_durably(path, "old")
    write_durably(path, json.dumps({"new": 1}))
    assert path.read_text() == '{"new": 1}'
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def refuse(monkeypatch):
    """`refuse(number, kind)`: flushing a file or a directory fails with this error number."""
    monkeypatch.setattr(files, "_reported_devices", set())
    fsync = os.fsync

    def arrange(number, kind):
        def failing(descriptor):
            if kind(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", failing)

    return arrange


UNSUPPORTED = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.ENOTTY]


@pytest.mark.parametrize("number", UNSUPPORTED, ids=errno.errorcode.get)
def test_a_file_system_that_cannot_flush_directories_is_one_notice_and_the_work_goes_on(
    tmp_path, caplog, refuse, number
):
    refuse(number, stat.S_ISDIR)
    (tmp_path / "below").mkdir()
    for name in ("a.json", "b.json", "below/c.json"):
        write_durably(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path} is on a file system that cannot flush directories ({os.strerror(number)})")
    assert "GPTLAB_RUNS" in message


@pytest.mark.parametrize("number", UNSUPPORTED, ids=errno.errorcode.get)
def test_a_file_system_that_cannot_flush_files_is_an_error_that_names_the_file_and_a_way_out(tmp_path, refuse, number):
    path = tmp_path / "a.json"
    path.touch()
    refuse(number, stat.S_ISREG)
    for write in (lambda: write_durably(path, "new"), lambda: append_json_line(path, {}), lambda: fsync_file(path)):
        with pytest.raises(GptlabError, match=r"a\.json is on a file system that cannot flush .* set GPTLAB_RUNS"):
            write()


def test_an_error_of_a_write_or_a_flush_names_the_file(tmp_path, refuse):
    path = tmp_path / "a.json"
    path.touch()
    refuse(errno.EIO, lambda mode: True)
    for write in (
        lambda: write_durably(path, "new"),
        lambda: append_json_line(path, {}),
        lambda: fsync_file(path),
        lambda: fsync_directory(path.parent),
    ):
        with pytest.raises(OSError, match=r"Input/output error") as caught:
            write()
        assert caught.value.filename in {str(path), str(path.parent)}
