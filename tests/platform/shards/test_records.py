from echostill.platform.shards.records import (
    are_whole,
    delete_record,
    read_record,
    read_records,
    write_record,
)
from echostill.platform.tables.storage import Storage


def test_records_are_read_as_they_were_written(tmp_path):
    storage = Storage(str(tmp_path))
    assert read_records(storage) == []
    assert read_record(storage, 3) is None
    records = [
        {"shard": shard, "files": [{"file": f"{shard}", "bytes": shard}]} for shard in (7, 3)
    ]
    for record in records:
        write_record(storage, record)
    assert sorted(storage.list("done")) == ["done/00003.json", "done/00007.json"]
    assert storage.read("done/00003.json") == (
        b'{"files": [{"bytes": 3, "file": "3"}], "shard": 3}'  # the bytes of earlier versions
    )
    assert read_record(storage, 7) == records[0]
    assert sorted(read_records(storage), key=lambda record: -record["shard"]) == records
    delete_record(storage, 7)
    delete_record(storage, 7)
    assert read_records(storage) == records[1:]


def test_files_are_whole_while_all_have_their_sizes(tmp_path):
    storage = Storage(str(tmp_path))
    files = []
    for name, data in {"a": b"", "b/c": b"123"}.items():
        storage.write(name, data)
        files.append({"file": name, "bytes": len(data)})
    assert are_whole([], storage.size)
    assert are_whole(files, storage.size)
    storage.write("b/c", b"12")
    assert not are_whole(files, storage.size)
    assert are_whole(files[:1], storage.size)
    storage.delete("a")
    assert not are_whole(files[:1], storage.size)
