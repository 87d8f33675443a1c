"""Checks that lowerings leave in a module, as errors that Python can raise.

An index beyond the rows of an embedding, sizes that do not fit: MLIR would end the process. Here
the function returns at once instead, and says which check failed.
"""

from __future__ import annotations

from typing import Any

from torch_mlir import ir
from torch_mlir.dialects import cf, func, memref

FAILED = "analogc_check_failed"
"""External function that gets the number of the check."""


def guard(module: Any) -> list[str]:
    """Turn each ``cf.assert`` of ``main`` into a branch; returns their messages, by number.

    Args:
        module: with memrefs and branches, but no structured control flow.
    """
    main = ir.SymbolTable(module.operation)["main"]
    blocks: dict[Any, list[int]] = {}
    listed = [list(block.operations) for block in main.body.blocks]
    for number, operations in enumerate(listed):
        found = [i for i, op in enumerate(operations) if op.operation.name == "cf.assert"]
        if found:
            blocks[number] = found
    if not blocks:
        return []
    with ir.InsertionPoint.at_block_begin(module.body):
        kind = ir.FunctionType.get([ir.IntegerType.get_signless(64)], [])
        failed = func.FuncOp(FAILED, kind, visibility="private")
    failed.attributes["llvm.emit_c_interface"] = ir.UnitAttr.get()
    messages: list[str] = []
    for number, positions in blocks.items():
        operations = listed[number]
        end, last = len(operations), None
        # From the last one on, so that each operation moves once.
        for i in reversed(positions):
            check = operations[i]
            after = check.operation.block.create_after()
            for op in (*operations[i + 1 : end], *([] if last is None else [last])):
                after.append(op)
            end, last = i, _branch(check, after, main.type.results, len(messages))
            place = str(check.location).removeprefix("loc(").removesuffix(")")
            message = ir.StringAttr(check.operation.attributes["msg"]).value
            messages.append(f"{message}\n  at:  {place}")
            check.operation.erase()
    return messages


def _branch(check: Any, after: Any, results: Any, number: int) -> Any:
    """Go on ``after`` the check, or return memory of any content."""
    block = check.operation.block
    otherwise = after.create_after()
    with check.location, ir.InsertionPoint(block):
        branch = cf.CondBranchOp(check.operation.operands[0], [], [], after, otherwise)
    with check.location, ir.InsertionPoint(otherwise):
        index = ir.Operation.create(
            "arith.constant",
            results=[ir.IntegerType.get_signless(64)],
            attributes={"value": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), number)},
        ).result
        func.CallOp([], ir.FlatSymbolRefAttr.get(FAILED), [index])
        func.ReturnOp([_any(kind) for kind in results])
    return branch


def _any(kind: Any) -> Any:
    one = None
    if not kind.has_static_shape:
        one = ir.Operation.create(
            "arith.constant",
            results=[ir.IndexType.get()],
            attributes={"value": ir.IntegerAttr.get(ir.IndexType.get(), 1)},
        ).result
    dynamic = [one for d in range(kind.rank) if kind.is_dynamic_dim(d)]
    return memref.AllocOp(kind, dynamic, []).result
