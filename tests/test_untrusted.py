import os

import pytest
from pydantic import BaseModel

from gptlab import untrusted
from gptlab.errors import GptlabError
from gptlab.untrusted import check_no_hard_links, check_tree, open_regular, read_document, read_json_lines


class Document(BaseModel):
    number: int


def test_a_document_is_validated_by_its_model(tmp_path):
    (tmp_path / "a.json").write_text('{"number": 7}')
    assert read_document(tmp_path / "a.json", Document).number == 7
    (tmp_path / "a.json").write_text('{"number": "' + "x" * 10_000 + '"}')
    with pytest.raises(GptlabError, match=r"a\.json is damaged: number: input should be a valid integer") as caught:
        read_document(tmp_path / "a.json", Document)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("row", ['{"a": 1}', "{}"])
def test_memory_for_rows_is_bounded_even_for_short_rows(tmp_path, monkeypatch, row):
    monkeypatch.setattr(untrusted, "MAX_ROWS_BYTES", 100 * untrusted.MIN_ROW_COST)
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{row}\n" * 99)
    assert len(list(read_json_lines(path))) == 99
    path.write_text(f"{row}\n" * 101)
    with pytest.raises(GptlabError, match=r"rows\.jsonl:101: .* too long"):
        list(read_json_lines(path))


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "open", lambda *arguments: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(GptlabError, match="a cannot be read: Permission denied"), open_regular(tmp_path / "a"):
        pass


def test_only_wandbs_own_links_are_allowed(tmp_path):
    logs = tmp_path / "wandb" / "run-1" / "logs"
    logs.mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "wandb" / "debug.log").symlink_to("run-1/logs/debug.log")
    (logs / "debug-core.log").symlink_to("/a/cache/core.log")
    check_tree(tmp_path)
    for link, target in [(logs / "debug.log", "/etc/passwd"), (logs / "up", "../../.."), (tmp_path / "in", "wandb")]:
        link.symlink_to(target)
        with pytest.raises(GptlabError, match=f"{link} is a symbolic link"):
            check_tree(tmp_path)
        link.unlink()


def test_only_files_that_are_never_written_in_place_may_have_hard_links(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "weights").touch()
    os.link(tmp_path / "weights", tmp_path / "checkpoints" / "model.safetensors")
    with pytest.raises(GptlabError, match="weights has a hard link"):
        check_no_hard_links(tmp_path)
    (tmp_path / "weights").rename(tmp_path / "checkpoints" / "other")
    check_no_hard_links(tmp_path)
