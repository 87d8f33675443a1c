"""A captured graph of a tiny model, for running passes on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from analogc import Target, targets
from analogc.compiler.capture import capture
from analogc.compiler.holder import hold
from analogc.compiler.printing import format_graph
from analogc.compiler.source import Source
from analogc.passes.base import META, Pass, PassContext
from analogc.passes.pipeline import parse
from analogc.passes.verify import verify
from analogc.runtime.calibrate import calibrate
from analogc.runtime.noise import NoiseSource


class Lowered:
    """A captured model and what passes share; the graph is verified after every pass."""

    def __init__(
        self,
        model: Any,
        inputs: tuple[Any, ...],
        target: Target,
        like: Lowered | None = None,
        **options: Any,
    ) -> None:
        """``like``: another graph of the same model, to share tiles and modules with."""
        source = Source(model, inputs, {}, **options)
        if like is None:
            root = hold(model.module(check_guards=False) if source.fixed else model)
            uid = f"test{id(self)}"
            self.ctx = PassContext(target=target, root=root, noise=NoiseSource(0), uid=uid)
        else:
            self.ctx = like.ctx
        self.module = capture(source, self.ctx.root).module  # type: ignore[arg-type]

    def run(self, *passes: Pass | str) -> bool:
        """Run ``passes``, given as objects or in text form; True if the last one changed it."""
        modified = False
        for given in passes:
            for step in parse(given) if isinstance(given, str) else (given,):
                step.requires(self.module)
                modified = step(self.module, self.ctx).modified
                step.ensures(self.module)
                verify(self.module.graph, self.ctx)
        return modified

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def calibrate(self, *inputs: Tensor) -> None:
        calibrate(self.module.graph, self.ctx.root, [inputs], self.ctx.target.calibration)

    @property
    def ir(self) -> str:
        """Printed graph with single spaces, without the places in the model."""
        text = format_graph(self.module.graph)
        return "\n".join(
            re.sub(r" +", " ", line.partition("  # ")[0]).strip() for line in text.splitlines()
        )

    @property
    def ops(self) -> list[str]:
        """Operators in order, short: ``aten.linear``."""
        return [
            str(node.target).removesuffix(".default")
            for node in self.module.graph.nodes
            if node.op == "call_function"
        ]

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.ops)

    def nodes(self, op: str) -> list[Any]:
        """Nodes of one operator."""
        return [
            node
            for node in self.module.graph.nodes
            if node.op == "call_function" and str(node.target).removesuffix(".default") == op
        ]

    def record(self, op: str) -> Any:
        """Annotation of the only node of an operator."""
        (node,) = self.nodes(op)
        return node.meta.get(META)


class Function(nn.Module):
    """A function of inputs and of named tensors: floating ones are parameters, others buffers."""

    def __init__(
        self, function: Callable[..., Any], tensors: dict[str, Tensor | nn.Module]
    ) -> None:
        super().__init__()
        self.function = function
        for name, value in tensors.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            elif value.is_floating_point() or value.is_complex():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


Lower = Callable[..., Lowered]
Make = Callable[..., nn.Module]


@pytest.fixture
def lower() -> Lower:
    """``lower(model, *inputs, target=ideal, ...)``: the captured graph of ``model``."""

    def build(model: Any, *inputs: Any, target: Target | None = None, **options: Any) -> Lowered:
        return Lowered(model, inputs, target or targets.ideal(), **options)

    return build


@pytest.fixture
def make() -> Make:
    """``make(lambda m, x: ..., W=tensor)``: a module in eval mode with ``W`` as a parameter."""

    def build(function: Callable[..., Any], **tensors: Tensor | nn.Module) -> nn.Module:
        return Function(function, tensors).eval()

    return build
