import errno
import os
import threading

import pytest

from latent_rewards.files.atomic import publish_folder, replacing, write_first, write_lines, write_text


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")

    def broken():
        yield b"new"
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        write_lines(tmp_path / "a", broken())
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda h: (seen.append("sync"), sync(h)))
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append("rename"), rename(a, b)))
    with replacing(tmp_path / "a") as temp:
        temp.write_text("new")
        assert not (tmp_path / "a").exists()
    assert seen == ["sync", "rename", "sync"] and (tmp_path / "a").read_text() == "new"


def refuse(number):
    def link(*_):
        raise OSError(number, os.strerror(number))

    return link


@pytest.mark.parametrize("links", [None, errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS])
def test_of_many_writers_one_is_first_and_all_are_whole(links, tmp_path, monkeypatch):
    if links:
        monkeypatch.setattr(os, "link", refuse(links))
    won = []

    def write(i):
        won.append(i) if write_first(tmp_path / "first", str(i) * 999) else None
        write_text(tmp_path / "last", str(i) * 999)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and (tmp_path / "first").read_text() == str(won[0]) * 999
    assert len(set((tmp_path / "last").read_text())) == 1 and sorted(os.listdir(tmp_path)) == ["first", "last"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("made", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    publish_folder(tmp_path / "made", tmp_path / "there", tmp_path / "aside")
    assert os.listdir(tmp_path / "there") == ["made"] and os.listdir(tmp_path / "aside") == ["there"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EIO))
    with pytest.raises(OSError, match="put/output"):
        write_first(tmp_path / "a", "text")
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    sync, calls = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda h: refuse(errno.ENOSPC)() if calls else (calls.append(1), sync(h)))
    with pytest.raises(OSError, match="No space"):
        write_first(tmp_path / "a", "text")
    assert os.listdir(tmp_path) == []
