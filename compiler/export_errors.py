"""What an error inside torch.export means for the user: where it is, and what to do."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path

from torch import fx, nn
from torch.nn.utils.rnn import PackedSequence

from ..runtime.errors import InputError, UnsupportedError

_STDLIB = str(Path(inspect.__file__).parent)

BY_DYNAMO = ", or let dynamo cut the model there: compile(..., capture='dynamo')"


class ExportError(UnsupportedError):
    """torch.export cannot capture the model; dynamo, which may cut it into graphs, might."""


def first_line(err: Exception) -> str:
    """First line of an error's message; empty if it has none."""
    return next(iter(str(err).strip().splitlines()), "")


def explain(err: Exception, model: nn.Module) -> Exception:
    """An error of analogc's own for an error inside torch.export."""
    if isinstance(err, InputError | UnsupportedError):
        return err
    where = user_line(err)
    text = str(err).strip()
    first = first_line(err) or type(err).__name__
    low = text.lower()
    if _has_packed_sequence(err):
        return UnsupportedError(
            "a recurrent layer gets a packed sequence, whose batch sizes a graph cannot hold",
            where=where,
            fix="give it the padded tensor, without pack_padded_sequence, and mask what it returns "
            "after the end of each sequence",
        )
    if "constraints violated" in low:
        marked = next((t for t in text.splitlines() if "You marked" in t), first)
        return UnsupportedError(
            f"the model fixes a size that dynamic_shapes= leaves open: {marked.strip(' -')}",
            where=where,
            fix="leave that dim out of dynamic_shapes=, or use Dim.AUTO; a recurrent layer has a "
            "fixed number of time steps",
        )
    if "data-dependent" in low or "datadependent" in type(err).__name__.lower():
        return ExportError(
            f"a Python branch depends on tensor values, which a graph cannot hold: {first}",
            where=where,
            fix=f"use torch.where or torch.cond in place of the Python `if`{BY_DYNAMO}",
        )
    if "scriptmodule" in low.replace(" ", "") or "torchscript" in low:
        return UnsupportedError(
            f"part of the model is a TorchScript module: {first}",
            where=where,
            fix="replace it by the nn.Module that it was made from",
        )
    if isinstance(err, fx.proxy.TraceError):
        return UnsupportedError(
            f"torch.fx could not trace {type(model).__name__}: {first}",
            where=where,
            fix="leave the module or function that does it whole: "
            "capture=SymbolicTrace(leaf_modules=..., autowrap_functions=...)",
        )
    return ExportError(
        f"torch.export could not capture {type(model).__name__}: {type(err).__name__}: {first}",
        where=where,
        fix="check that model(*example_inputs) runs; torch.export.export(model, example_inputs) "
        "shows the full error",
    )


def _has_packed_sequence(err: BaseException) -> bool:
    frames = traceback.walk_tb(err.__traceback__)
    return any(isinstance(v, PackedSequence) for f, _ in frames for v in f.f_locals.values())


def user_line(err: BaseException) -> str | None:
    """``file:line: code`` of the user's code that raised ``err``, if it did."""
    frames = [f for f in traceback.extract_tb(err.__traceback__) if is_user_file(f.filename)]
    if not frames:
        return None
    last = frames[-1]
    return f"{last.filename}:{last.lineno}" + (f": {last.line}" if last.line else "")


def is_user_file(name: str) -> bool:
    """Whether a source file is neither torch's, nor Python's, nor analogc's."""
    if name.startswith("<") or (name.startswith(_STDLIB) and "/site-packages/" not in name):
        return False
    home = str(Path(__file__).resolve().parent)
    return not name.startswith(home) and not any(p in name for p in ("/torch/", "/analogc/"))
