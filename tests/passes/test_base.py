from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import fx, nn

from analogc.passes.base import FROM, inherit, module_path, source_line, source_name
from analogc.passes.emit import Emitter, fake_mode, take_place

if TYPE_CHECKING:
    from tests.passes.conftest import Lower


def test_source_line_is_the_innermost_line_of_the_user() -> None:
    node = fx.Graph().placeholder("x")
    assert source_line(node) is None

    node.meta["stack_trace"] = (
        '  File "/home/me/train.py", line 3, in <module>\n    net(x)\n'
        '  File "/home/me/net.py", line 7, in forward\n    y = self.fc(x)\n'
        '  File "/site-packages/torch/nn/modules/linear.py", line 125, in forward\n    return\n'
    )
    assert source_line(node) == "/home/me/net.py:7"


def test_source_line_of_torchs_own_code_is_better_than_none() -> None:
    node = fx.Graph().placeholder("x")
    node.meta["stack_trace"] = '  File "/x/torch/nn/linear.py", line 125, in forward\n'

    assert source_line(node) == "/x/torch/nn/linear.py:125"


@pytest.mark.parametrize(
    ("path", "found"), [("L['self'].fc", "fc"), ("a.b", "a.b"), ("", ""), ("L['self']", "")]
)
def test_module_path_is_that_of_the_innermost_module(path: str, found: str) -> None:
    node = fx.Graph().placeholder("x")
    assert module_path(node) == ""

    node.meta["nn_module_stack"] = {"0": ("", "Net"), "1": (path, "Linear")}
    assert module_path(node) == found


def test_provenance_grows_with_each_rewrite() -> None:
    graph = fx.Graph()
    first, second, third = (graph.placeholder(name) for name in ("a", "b", "c"))
    first.meta["stack_trace"] = "somewhere"

    inherit(second, first, "one")
    inherit(third, second, "two")

    assert third.meta[FROM] == (("one", "a"), ("two", "b"))
    assert source_name(third) == "a"
    assert source_name(first) == "a"
    assert third.meta["stack_trace"] == "somewhere"


def test_take_place_hands_over_users_and_name() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    old = graph.call_function(torch.relu, (x,), name="layer")
    user = graph.call_function(torch.neg, (old,))
    with graph.inserting_before(old):
        new = graph.call_function(torch.tanh, (x,))
    graph.output(user)

    take_place(new, old)

    assert new.name == "layer"
    assert user.args == (new,)
    assert old not in graph.nodes
    graph.lint()


def test_emitted_nodes_carry_the_fake_tensor_of_their_operator(lower: Lower) -> None:
    lowered = lower(nn.ReLU(), torch.randn(3, 4), dynamic_shapes="batch")
    (anchor,) = lowered.nodes("aten.relu")

    node = Emitter(anchor, "test").call(torch.ops.aten.transpose.int, anchor.args[0], 0, 1)

    value = node.meta["val"]
    assert value.shape[0] == 4 and isinstance(value.shape[1], torch.SymInt)
    assert value.fake_mode is fake_mode(lowered.module.graph)
    assert node.meta[FROM] == (("test", "relu"),)
    assert node.next is anchor
