from echostill.platform.cluster.members import NodeWatch


def node(name, cpus, gpus=0, alive=True):
    resources = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    return {"NodeID": name, "Alive": alive, "NodeManagerAddress": f"10.0.0.{name}",
            "Resources": resources}  # fmt: skip


def test_a_lost_node_is_one_sentence_and_one_that_comes_another():
    said, nodes = [], [node("1", 0), node("2", 8, 2)]
    watch = NodeWatch(lambda: nodes, said.append)
    assert watch.described == "1 node of 0 CPUs, 1 node of 8 CPUs and 2 GPUs"
    watch.compare()
    assert said == []
    nodes[1] = node("2", 8, 2, alive=False)
    watch.compare()
    watch.compare()
    (line,) = said
    assert line.startswith("node 10.0.0.2 (8 CPUs and 2 GPUs) was lost:")
    assert line.endswith("the cluster has 1 node of 0 CPUs.")
    nodes.append(node("3", 4))
    watch.compare()
    assert said[1:] == ["node 10.0.0.3 (4 CPUs) came"]
