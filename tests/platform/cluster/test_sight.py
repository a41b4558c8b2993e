"""What nodes prove about a store; each node here is a folder where its store is."""

import pickle
from dataclasses import replace

import pytest

from echostill.platform.cluster import sight
from echostill.platform.errors import UsageError
from echostill.platform.tables.storage import Storage


def check(root, roots):
    nodes = [
        {"NodeID": f"id{number}", "NodeManagerAddress": f"10.0.0.{number}"}
        for number in range(len(roots))
    ]
    places = {node["NodeID"]: place for node, place in zip(nodes, roots, strict=True)}

    def ask(node, word):
        return node["NodeID"], word

    def wait(asked):
        return {
            (name, word): sight.prove(str(places[name]), word, name)
            for name, word in asked
            if places[name] is not None
        }

    silent = sight.compare(str(root), nodes, ask, wait)
    return [node["NodeManagerAddress"] for node in silent]


def test_nodes_that_share_the_store_leave_nothing_behind(tmp_path):
    (tmp_path / "mounted").symlink_to(tmp_path / "store")
    assert check(tmp_path / "store", [tmp_path / "store", tmp_path / "mounted"]) == []
    assert Storage(str(tmp_path / "store")).list(recursive=True) == []


def test_a_node_with_a_folder_of_its_own_is_named(tmp_path):
    with pytest.raises(UsageError) as refused:
        check(tmp_path / "store", [tmp_path / "store", tmp_path / "own"])
    assert "node 10.0.0.1 does not see the store" in str(refused.value)
    assert "what was written here is not there" in str(refused.value)
    assert Storage(str(tmp_path / "store")).list(recursive=True) == []


def test_a_node_that_only_reads_is_named(tmp_path, monkeypatch):
    def refuse(self, name, data):
        raise OSError("Read-only file system")

    with monkeypatch.context() as patch:
        store = Storage(str(tmp_path))
        store.write("lease/seen-w", b"w")
        patch.setattr(Storage, "write", refuse)
        assert sight.prove(str(tmp_path), "w", "n") == "Read-only file system"


def test_a_node_that_does_not_answer_is_told(tmp_path):
    assert check(tmp_path / "store", [None, tmp_path / "store"]) == ["10.0.0.0"]


def test_a_worker_that_starts_later_reads_the_word_of_its_driver(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path / "store"))
    with sight.shared_word(storage) as word:
        pickle.loads(pickle.dumps(word)).prove("10.0.0.1")
        word.prove("10.0.0.2")
        assert len(storage.list()) == 3
        stranger = replace(word, storage=Storage(str(tmp_path / "own")))
        with pytest.raises(UsageError, match=r"node 10\.0\.0\.3 does not see .*own.* is not here"):
            stranger.prove("10.0.0.3")

        def refuse(self, name, data):
            raise OSError("Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", refuse)
            with pytest.raises(
                UsageError, match=r"node 10\.0\.0\.4 .*: Read-only file system\. Exp"
            ):
                word.prove("10.0.0.4")
    assert storage.list() == []
    with pytest.raises(UsageError, match="is not here"):  # a word of an earlier run is no proof
        word.prove("10.0.0.1")
