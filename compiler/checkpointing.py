"""Keep calls of torch.utils.checkpoint in sight while a model is traced.

A trace of the call itself loses it: the reentrant kind runs without gradients, and what it computes
would have none. So while a model is captured the function is called as it is, and the nodes that
come of it carry the number of the call.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch.fx.traceback import annotate, preserve_node_meta
from torch.utils import checkpoint

from ..passes.base import CHECKPOINT


@contextlib.contextmanager
def in_sight() -> Iterator[None]:
    """Within it, checkpointed functions are called as they are, their nodes marked."""
    calls = itertools.count()

    class Reentrant:
        @staticmethod
        def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
            with preserve_node_meta(), annotate({CHECKPOINT: next(calls)}):
                return function(*args)

    def plain(*_args: Any, **_kwargs: Any) -> Generator[None]:
        with preserve_node_meta(), annotate({CHECKPOINT: next(calls)}):
            yield

    # Both are looked up when torch.utils.checkpoint.checkpoint is called, however the model got it.
    with (
        mock.patch.object(checkpoint, "CheckpointFunction", Reentrant),
        mock.patch.object(checkpoint, "_checkpoint_without_reentrant_generator", plain),
    ):
        yield


def mark(module: torch.nn.Module) -> None:
    """Write the number of the call into the meta of every node that a call made."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                number = (node.meta.get("custom") or {}).get(CHECKPOINT)
                if number is not None:
                    node.meta[CHECKPOINT] = number
