"""Unroll recurrent layers into linears and the arithmetic of their gates.

LSTM, GRU and RNN, as layers and as cells, of any number of layers and directions, with projections
and dropout. The input's matrix meets the whole sequence in one linear; the hidden state's meets one
time step after the other, so there is one linear a step, all on one tile array and with one set of
converter ranges. The graph holds every step, so the length has to be a number, and not too large.

Gates in torch's order: LSTM i, f, g, o; GRU r, z, n.

    LSTM   c' = f c + i g       h' = W_hr (o tanh c')        (W_hr: projection, if there is one)
    GRU    n = tanh(x_n + r h_n)        h' = n + z (h - n)
    RNN    h' = tanh(x + h)  or  relu(x + h)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .base import LOOP, Pass, PassContext, PassResult, finish
from .canonicalize import LINEAR
from .emit import Emitter, take_place
from .macs import RECURRENT
from .select_analog import keep_digital, unfit
from .stationary import live_nodes, stationary_nodes

aten = torch.ops.aten
State = tuple[fx.Node, ...]
"""(h, c) of an LSTM, (h,) of the others."""

_CELLS = {op for op in RECURRENT if op._overloadname == "default"}
_PACKED = {aten.lstm.data, aten.gru.data, aten.rnn_tanh.data, aten.rnn_relu.data}


@dataclass(frozen=True, slots=True)
class LowerRecurrent(Pass):
    """Rewrite recurrent layers and cells with stored weights into ``linear`` and gates."""

    steps: int = 512
    """Most time steps that a layer is unrolled to."""
    name: ClassVar[str] = "lower-recurrent"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        nodes = [n for n in module.graph.nodes if n.target in RECURRENT or n.target in _PACKED]
        if not nodes:
            return PassResult(module, False)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        modified = False
        for node in nodes:
            if node not in live:
                continue
            reason = self._reason(node, fixed)
            if reason is not None:
                keep_digital(node, *reason)
                continue
            if node.target in _CELLS:
                _lower_cell(node, live)
            else:
                _lower_layer(node, live)
            modified = True
        return finish(module, modified)

    def _reason(self, node: fx.Node, fixed: set[fx.Node]) -> tuple[str, str] | None:
        """Why a layer cannot be unrolled, and the rule of that, if it cannot."""
        if node.target in _PACKED:
            why = "packed sequence: pass the padded tensor, and mask what it returns"
            return why, "unsupported"
        weights = _weights(node)
        for weight in weights:
            if weight not in fixed:
                return "its weights are computed from an activation", "rule"
            bad = unfit(weight)
            if bad is not None:
                return bad[1], bad[0]
        if node.target in _CELLS:
            return None
        x = node.args[0]
        assert isinstance(x, fx.Node), "a recurrent layer has a tensor input"
        length = x.meta["val"].shape[1 if node.args[-1] else 0]
        if not isinstance(length, int):
            return (
                "its number of time steps is dynamic: give it a fixed one in dynamic_shapes=",
                "unsupported",
            )
        if length > self.steps:
            return (
                f"{length} time steps, more than {self.steps}: cut the sequence into parts that "
                f"hand on the state, or unroll it by lower-recurrent{{steps={length}}} in passes=",
                "unsupported",
            )
        return None if length else ("its sequence is empty", "rule")


def _weights(node: fx.Node) -> list[fx.Node]:
    if node.target in _CELLS:
        given: Any = node.args[2:]
    else:
        given = next(arg for arg in node.args[2:] if isinstance(arg, list | tuple))
    return [weight for weight in given if isinstance(weight, fx.Node)]


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of one direction of one layer."""

    ih: fx.Node
    hh: fx.Node
    b_ih: fx.Node | None = None
    b_hh: fx.Node | None = None
    hr: fx.Node | None = None


Step = Callable[["Unroller", fx.Node, State, Weights], State]


class Unroller:
    """Emits the steps of one layer; what a step computes is the same each time."""

    def __init__(self, node: fx.Node, live: set[fx.Node]) -> None:
        self.emit = Emitter(node, LowerRecurrent.name)
        self.live = live
        self.x = node.args[0]
        # The calls of one cell are the steps of the user's own loop.
        self.loop = "cell" if node.target in _CELLS else node.name
        self.step: Step = _STEPS[RECURRENT[node.target]]  # type: ignore[index]

    def call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        """A node of the unrolled layer."""
        return self.emit.call(target, *args)

    def linear(self, x: fx.Node, weight: fx.Node, bias: fx.Node | None, loop: str = "") -> fx.Node:
        """A product of the layer; those of one ``loop`` share tiles and converter ranges."""
        y = self.call(LINEAR, x, weight, *([] if bias is None else [bias]))
        if loop:
            y.meta[LOOP] = f"{self.loop}/{loop}"
        return y

    def chunks(self, x: fx.Node, count: int) -> list[fx.Node]:
        """``x`` cut into the gates."""
        parts = self.call(aten.chunk.default, x, count, -1)
        return [self.call(operator.getitem, parts, i) for i in range(count)]

    def places(self, x: fx.Node, count: int) -> list[fx.Node]:
        """``x`` along its first dim. Not by select, whose gradient is as large as ``x``."""
        parts = self.call(aten.unbind.int, x, 0)
        return [self.call(operator.getitem, parts, i) for i in range(count)]

    def start(self, state: fx.Node) -> fx.Node:
        """An initial state as an activation, so that its product is one, too."""
        if state in self.live:
            return state
        shape = [1] * state.meta["val"].dim()
        return self.call(aten.add.Tensor, state, self.call(aten.new_zeros.default, self.x, shape))

    def run(self, x: fx.Node, state: State, w: Weights, backward: bool) -> tuple[fx.Node, State]:
        """One direction of one layer on ``x`` [T, B, I]: its output [T, B, H] and last state."""
        length = int(x.meta["val"].shape[0])
        given = self.places(self.linear(x, w.ih, w.b_ih), length)
        outputs = []
        for part in reversed(given) if backward else given:
            state = self.step(self, part, state, w)
            outputs.append(state[0])
        if backward:
            outputs.reverse()
        return self.call(aten.stack.default, outputs), state


def _lstm(at: Unroller, given: fx.Node, state: State, w: Weights) -> State:
    h, c = state
    gates = at.call(aten.add.Tensor, given, at.linear(h, w.hh, w.b_hh, "hh"))
    i, f, g, o = at.chunks(gates, 4)
    i, f, o = (at.call(aten.sigmoid.default, gate) for gate in (i, f, o))
    kept = at.call(aten.mul.Tensor, f, c)
    new = at.call(aten.mul.Tensor, i, at.call(aten.tanh.default, g))
    c = at.call(aten.add.Tensor, kept, new)
    h = at.call(aten.mul.Tensor, o, at.call(aten.tanh.default, c))
    if w.hr is not None:
        h = at.linear(h, w.hr, None, "hr")
    return h, c


def _gru(at: Unroller, given: fx.Node, state: State, w: Weights) -> State:
    (h,) = state
    x_r, x_z, x_n = at.chunks(given, 3)
    h_r, h_z, h_n = at.chunks(at.linear(h, w.hh, w.b_hh, "hh"), 3)
    r = at.call(aten.sigmoid.default, at.call(aten.add.Tensor, x_r, h_r))
    z = at.call(aten.sigmoid.default, at.call(aten.add.Tensor, x_z, h_z))
    n = at.call(aten.add.Tensor, x_n, at.call(aten.mul.Tensor, r, h_n))
    n = at.call(aten.tanh.default, n)
    moved = at.call(aten.mul.Tensor, z, at.call(aten.sub.Tensor, h, n))
    return (at.call(aten.add.Tensor, n, moved),)


def _rnn(activation: Callable[..., Any]) -> Step:
    def step(at: Unroller, given: fx.Node, state: State, w: Weights) -> State:
        (h,) = state
        total = at.call(aten.add.Tensor, given, at.linear(h, w.hh, w.b_hh, "hh"))
        return (at.call(activation, total),)

    return step


_STEPS: dict[str, Step] = {
    "lstm": _lstm,
    "gru": _gru,
    "tanh": _rnn(aten.tanh.default),
    "relu": _rnn(aten.relu.default),
}


def _lower_cell(node: fx.Node, live: set[fx.Node]) -> None:
    at = Unroller(node, live)
    x, given, *weights = node.args
    assert isinstance(x, fx.Node), "a cell has a tensor input"
    states = given if isinstance(given, list | tuple) else [given]
    state = tuple(at.start(s) for s in states if isinstance(s, fx.Node))
    w = Weights(*weights)  # type: ignore[arg-type]
    result = at.step(at, at.linear(x, w.ih, w.b_ih, "ih"), state, w)
    if RECURRENT[node.target] == "lstm":  # type: ignore[index]
        _replace(node, result)
    else:
        at.emit.replace(result[0])


def _lower_layer(node: fx.Node, live: set[fx.Node]) -> None:
    x, given, weights, has_biases, layers, dropout, train, both, batch_first = node.args
    assert isinstance(x, fx.Node) and isinstance(layers, int), "arguments of a recurrent layer"
    at = Unroller(node, live)
    directions = 2 if both else 1
    sets = _sets(_weights(node), bool(has_biases), layers * directions)
    states = given if isinstance(given, list | tuple) else [given]
    first = [at.places(at.start(s), len(sets)) for s in states if isinstance(s, fx.Node)]
    last: list[State] = []
    # As in torch: time first inside, which also makes dropout draw the same numbers.
    y = at.call(aten.transpose.int, x, 0, 1) if batch_first else x
    for layer in range(layers):
        outputs: list[fx.Node] = []
        for w in sets[layer * directions : (layer + 1) * directions]:
            state = tuple(each[len(last)] for each in first)
            output, state = at.run(y, state, w, bool(outputs))
            outputs.append(output)
            last.append(state)
        y = at.call(aten.cat.default, outputs, -1) if both else outputs[0]
        if dropout and train and layer < layers - 1:
            y = at.call(aten.dropout.default, y, dropout, True)
    if batch_first:
        y = at.call(aten.transpose.int, y, 0, 1)
    ends = (at.call(aten.stack.default, list(each)) for each in zip(*last, strict=True))
    _replace(node, (y, *ends))


def _sets(weights: Sequence[fx.Node], has_biases: bool, count: int) -> list[Weights]:
    """Weights of each layer and direction: matrices, biases, and a projection if there is one."""
    size = len(weights) // count
    sets = []
    for i in range(count):
        ih, hh, *rest = weights[i * size : (i + 1) * size]
        biases = (rest.pop(0), rest.pop(0)) if has_biases else (None, None)
        sets.append(Weights(ih, hh, *biases, *rest))
    return sets


def _replace(node: fx.Node, results: Sequence[fx.Node]) -> None:
    """Let ``results`` take the places of the items of ``node``."""
    for user in list(node.users):
        assert user.target is operator.getitem, "a recurrent layer returns a tuple"
        take_place(results[int(str(user.args[1]))], user)
    node.graph.erase_node(node)
