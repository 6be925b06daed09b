"""The journal: whole entries survive any cut of the tail, and come back in the order of the rows."""

import os
import re
import threading

import pytest

import jobs.journal as journal_module
from jobs.journal import Journal, JournalLost
from nanovllm import ConfigError


@pytest.fixture
def path(tmp_path):
    """A journal with the rows 2, 0 and 1; row 0 has two lines."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append(2, "r:c", {"note": "é"}, ['{"id": "c"}'])
    journal.append(0, "r:a", {}, ['{"id": "a"}', '{"id": "ä"}'])
    journal.append(1, "r:b", {}, ['{"id": "b"}'])
    journal.close()
    return path


def entry_ends(path):
    """Where the entries end, by the letters of the ids and not by the heads."""
    data = path.read_bytes()
    return [data.index(b'{"id": "c"}\n') + 12, data.index('{"id": "ä"}\n'.encode()) + 13, len(data)]


def test_rows_come_in_the_order_of_their_indexes(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append(2, "r:c", {}, ["C"])
    journal.append(0, "r:a", {}, ["A1", "A2"])
    assert [lines for _, lines in journal.ordered(journal.order())] == [[b"A1\n", b"A2\n"], [b"C\n"]]
    journal.close()


def test_entries_are_found_by_key_after_a_start(path):
    journal = Journal(path)
    assert (journal.recovery.num_entries, journal.recovery.num_cut_bytes) == (3, 0)
    entry = journal.find("r:a")
    assert journal.lines(entry) == ['{"id": "a"}', '{"id": "ä"}']
    assert journal.find("r:c").head["note"] == "é"
    assert journal.find("r:d") is None
    assert [entry.head["key"] for entry in journal.unfound()] == ["r:b"]
    assert list(journal.ordered(journal.order())) == []  # what nobody kept is not part of this run
    journal.keep(entry)
    assert [lines for _, lines in journal.ordered(journal.order())] == [[b'{"id": "a"}\n', '{"id": "ä"}\n'.encode()]]
    journal.close()


def test_the_newest_entry_of_a_key_counts(path):
    journal = Journal(path)
    journal.append(0, "r:a", {}, ["new"])
    journal.close()
    journal = Journal(path)
    assert journal.lines(journal.find("r:a")) == ["new"]
    journal.close()


def test_what_is_kept_and_what_is_new_come_in_one_order(path):
    journal = Journal(path)
    journal.keep(journal.find("r:c"))  # row 2
    journal.append(0, "r:z", {}, ["Z1", "Z2"])
    journal.append(4, "r:y", {}, ["Y"])
    journal.keep(journal.find("r:b"))  # row 1
    order = [lines for _, lines in journal.ordered(journal.order())]
    assert order == [[b"Z1\n", b"Z2\n"], [b'{"id": "b"}\n'], [b'{"id": "c"}\n'], [b"Y\n"]]
    journal.close()


def test_a_row_that_is_done_again_replaces_its_earlier_entry(path):
    journal = Journal(path)
    journal.find("r:a")
    journal.append(0, "r:a", {}, ["new"])
    assert [lines for _, lines in journal.ordered(journal.order())] == [[b"new\n"]]
    journal.close()


def test_a_tail_torn_at_any_byte_is_cut_to_the_last_whole_row_also_twice(path, tmp_path):
    data, ends = path.read_bytes(), entry_ends(path)
    for size in range(ends[0], ends[2]):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(data[:size])
        num_whole = sum(end <= size for end in ends)
        journal = Journal(torn)
        assert journal.recovery.num_entries == num_whole
        assert journal.recovery.num_cut_bytes == size - ends[num_whole - 1]
        journal.append(9, "r:x", {}, ["after the cut"])
        journal.close()
        whole = torn.read_bytes()
        assert whole.startswith(data[: ends[num_whole - 1]] + b'{"index": 9, ')
        torn.write_bytes(whole[:-1])  # complete but for its newline
        journal = Journal(torn)
        assert journal.recovery.num_entries == num_whole
        journal.close()
        assert torn.read_bytes() == data[: ends[num_whole - 1]]


def test_a_beginning_torn_at_any_byte_is_written_again(path):
    data = path.read_bytes()
    for size in range(data.index(b"\n") + 1):
        path.write_bytes(data[:size])
        Journal(path).close()
        assert path.read_bytes() == data[: data.index(b"\n") + 1]


@pytest.mark.parametrize("tail", [bytes(5000), b"{}\n", b'{"index": 5, "key": "r:z"}\n', b"[[[[\n", b"\xff\xfe\n"])
def test_a_tail_that_is_no_entry_is_cut(path, tail):
    data = path.read_bytes()
    path.write_bytes(data + tail)
    journal = Journal(path)
    assert (journal.recovery.num_entries, journal.recovery.num_cut_bytes) == (3, len(tail))
    journal.close()
    assert path.read_bytes() == data


def test_a_changed_byte_in_a_line_ends_the_journal_there(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b'{"id": "b"}', b'{"id": "B"}'))
    journal = Journal(path)
    assert journal.recovery.num_entries == 2
    journal.close()


def test_another_file_is_refused_and_stays(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"mine": 1}\n')
    with pytest.raises(ConfigError, match=re.escape(f"{path} is not a journal of this version")):
        Journal(path)
    assert path.read_text() == '{"mine": 1}\n'


def test_a_write_that_fails_midway_leaves_whole_entries(path, monkeypatch):
    data, write = path.read_bytes(), os.write
    journal = Journal(path)

    def half(file, view):
        write(file, bytes(view)[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space left"):
        journal.append(3, "r:d", {}, ["x"])
    monkeypatch.undo()
    assert path.read_bytes() == data
    journal.append(3, "r:d", {}, ["x"])
    journal.close()
    journal = Journal(path)
    assert journal.recovery.num_entries == 4
    journal.close()


def test_rows_are_on_disk_within_a_second(tmp_path, monkeypatch):
    synced, now = [], [0.0]

    def fsync(file):
        if threading.current_thread() is threading.main_thread():  # the other is what the next test is about
            synced.append(now[0])

    monkeypatch.setattr(os, "fsync", fsync)
    journal = Journal(tmp_path / "j", clock=lambda: now[0])
    synced.clear()
    for tenths in range(1, 35):
        now[0] = tenths / 10
        journal.append(tenths, f"r:{tenths}", {}, ["x"])
    assert synced == [1.0, 2.0, 3.0]
    journal.close()
    assert len(synced) == 4


def test_the_last_row_before_a_pause_is_on_disk_without_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "SYNC_SECONDS", 0.01)
    journal = Journal(tmp_path / "j", clock=lambda: 0.0)  # by this clock no append finds a sync due
    synced = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda file: synced.set())
    journal.append(0, "r:a", {}, ["x"])
    assert synced.wait(60)
    journal.close()


def test_a_deleted_journal_is_noticed(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append(0, "r:a", {}, ["x"])
    (tmp_path / "j").unlink()
    with pytest.raises(JournalLost, match="was deleted while the run wrote to it"):
        journal.sync()
    journal.close()
