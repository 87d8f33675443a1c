"""From a flat graph to a module of the torch dialect; layers as operators or as analog operations.

The base classes come with torch-mlir. Analog operations take and give builtin tensors, between
casts that vanish when the digital work around them is lowered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch_mlir import ir
from torch_mlir.extras import fx_importer

from ...passes.base import META, module_path, source_line
from ...passes.verify import OPS
from .arguments import Argument
from .decompose import Flat

NAME, KIND = "analog.name", "analog.kind"
_VTENSOR = re.compile(r"!torch\.vtensor<\[([^\]]*)\],([^<>]*(?:<[^<>]*>)?)>")
_SIGN = re.compile(r"^[su]i(\d+)$")

LayerBuilder = Callable[[str, Any, tuple[Any, ...], Any], Any]
"""Makes an analog operation: name of the operator, its mapping, its operands (builtin tensors and
settings, as the operator takes them), type of the result."""


def import_graph(
    flat: Flat,
    context: Any,
    build_layer: LayerBuilder | None = None,
    literals: dict[str, Tensor] | None = None,
) -> Any:
    """Module of the torch dialect whose function ``main`` computes ``flat``.

    Args:
        flat: the graph.
        context: of the module; it knows the torch dialect.
        build_layer: what makes an analog operation of a layer; None: layers stay operators.
        literals: values, by argument name, that become constants of that name in the module.
    """
    importer = fx_importer.FxImporter(
        context=context, config_check=False, graph_node_importer_cls=_importer(build_layer)
    )
    importer._cc = _Places(context, py_attr_tracker=importer._py_attr_tracker)
    importer.import_stateless_graph(flat.module.graph, func_name="main")
    module = importer.module
    with context:
        (function,) = module.body.operations
        _inline(function, flat.arguments, literals or {})
    return module


def builtin_type(vtensor: Any) -> Any:
    """``tensor<?x16xf32>`` of ``!torch.vtensor<[?,16],f32>``; integers lose their sign."""
    found = _VTENSOR.fullmatch(str(vtensor))
    assert found is not None, f"no value tensor: {vtensor}"
    sizes, element = found.groups()
    element = _SIGN.sub(r"i\1", element)
    return ir.Type.parse(f"tensor<{''.join(f'{n}x' for n in sizes.split(',') if n)}{element}>",
                         vtensor.context)  # fmt: skip


class _Places(fx_importer.ContextCache):  # type: ignore[misc]
    """Locations: the path of the module, and the user's own source line."""

    def get_node_location(self, node: fx.Node) -> Any:
        origin = node.meta.get("analogc_source", node)
        line, path = source_line(origin), module_path(origin)
        place = ir.Location.unknown(self._c)
        if line is not None:
            file, _, number = line.rpartition(":")
            place = ir.Location.file(file, int(number), 0, context=self._c)
        return ir.Location.name(path, place, context=self._c) if path else place


def _importer(build_layer: LayerBuilder | None) -> type[Any]:
    class Importer(fx_importer.GraphNodeImporter):  # type: ignore[misc]
        def _import_torch_op_overload(
            self, loc: Any, node: fx.Node, concrete_target: Any = None
        ) -> None:
            if build_layer is None or node.target not in OPS:
                super()._import_torch_op_overload(loc, node, concrete_target)
                return
            with loc:
                operands = tuple(self._operand(loc, arg) for arg in node.args)
                (result,) = self._unpack_node_result_types(node, node.target._schema)
                value = build_layer(
                    OPS[node.target], node.meta[META], operands, builtin_type(result)
                )
                back = ir.Operation.create(
                    "torch_c.from_builtin_tensor", results=[result], operands=[value]
                )
            self.bind_node_value(node, back.result)

        def _operand(self, loc: Any, arg: Any) -> Any:
            if not isinstance(arg, fx.Node):
                return arg
            value = self._import_argument(loc, arg)
            return ir.Operation.create(
                "torch_c.to_builtin_tensor", results=[builtin_type(value.type)], operands=[value]
            ).result

    return Importer


# -- arguments ------------------------------------------------------------------------------------


def _inline(function: Any, arguments: tuple[Argument, ...], literals: dict[str, Tensor]) -> None:
    block = function.body.blocks[0]
    for i in reversed(range(len(arguments))):
        if arguments[i].name in literals:
            value = literals[arguments[i].name]
            with ir.InsertionPoint.at_block_begin(block), ir.Location.name(arguments[i].name):
                literal = ir.Operation.create(
                    "torch.vtensor.literal",
                    results=[block.arguments[i].type],
                    attributes={"value": elements(value, arguments[i].name)},
                )
            block.arguments[i].replace_all_uses_with(literal.result)
            block.erase_argument(i)
        else:
            name = arguments[i].name
            block.arguments[i].set_location(ir.Location.name(name))
    kind = function.type
    inputs = [argument.type for argument in block.arguments]
    function.attributes["function_type"] = ir.TypeAttr.get(
        ir.FunctionType.get(inputs, kind.results)
    )
    name_arguments(function, [a for a in arguments if a.name not in literals])


def name_arguments(function: Any, arguments: list[Argument]) -> None:
    """Let every argument say what it stands for."""
    function.attributes["arg_attrs"] = ir.ArrayAttr.get(
        [
            ir.DictAttr.get(
                {NAME: ir.StringAttr.get(argument.name), KIND: ir.StringAttr.get(argument.kind)}
            )
            for argument in arguments
        ]
    )


def elements(value: Tensor, name: str) -> Any:
    """Elements attribute of ``value``: a resource named ``name``, or in place if it is tiny."""
    kind = fx_importer.create_mlir_tensor_type(value)
    plain = value.detach().cpu().contiguous()
    raw = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else None
    if plain.dtype is torch.bool or plain.numel() <= 1:
        # A splat has no resource, and bits of a resource are packed.
        return ir.DenseElementsAttr.get(_bytes(plain), type=kind, shape=None)
    assert raw is not None, "it has elements"
    return ir.DenseResourceElementsAttr.get_from_buffer(raw, name, kind, alignment=64)


def _bytes(value: Tensor) -> Any:
    if value.dtype is torch.bfloat16:
        return value.view(torch.int16).numpy()
    return value.numpy()
