import os

from echostill.platform import memory


def test_a_container_may_have_less(tmp_path, monkeypatch):
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.available_memory() <= total
    answers = {"meminfo": ["MemTotal: 9 kB", "MemAvailable:   4000 kB"]}
    monkeypatch.setattr(memory, "_lines", lambda path: answers.get(path.name, []))
    assert memory.available_memory() == 4000 * 1024
    answers |= {"memory.max": ["3000000"], "memory.current": ["1000000"]}
    assert memory.available_memory() == 2_000_000
    answers["memory.max"] = ["max"]
    assert memory.available_memory() == 4000 * 1024
    answers.clear()
    assert memory.available_memory() == total // 2
