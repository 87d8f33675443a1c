"""From a flat graph to a module of the torch dialect; layers as operators or as analog operations.

The base classes come with torch-mlir. Analog operations take and give builtin tensors, between
casts that vanish when the digital work around them is lowered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch_mlir import ir
from torch_mlir.extras import fx_importer

from ...passes.base import META, module_path, source_line
from ...passes.verify import OPS
from ...runtime.errors import AnalogcError, UnsupportedError
from ...runtime.mapping import TileMapping
from .arguments import Argument
from .decompose import HELD, SOURCE, Flat

NAME, KIND, SOURCES = "analog.name", "analog.kind", "analog.sources"
"""Attributes of an argument: see Argument."""
_OF_SIZES = {max: torch.ops.prim.max.int, min: torch.ops.prim.min.int}
"""Operators of functions of sizes that torch-mlir does not import by itself."""
_VTENSOR = re.compile(r"!torch\.vtensor<\[([^\]]*)\],([^<>]*(?:<[^<>]*>)?)>")
_SIGN = re.compile(r"^[su]i(\d+)$")

LayerBuilder = Callable[[TileMapping, tuple[Any, ...], Any, Any], Any]
"""Makes an analog operation; see ``layers.build_layer``."""


def import_graph(
    flat: Flat,
    context: Any,
    build_layer: LayerBuilder | None = None,
    literals: Mapping[str, Tensor] | None = None,
) -> tuple[Any, tuple[Argument, ...]]:
    """Module of the torch dialect whose function ``main`` computes ``flat``, and its arguments.

    Args:
        flat: the graph.
        context: of the module; it knows the torch dialect.
        build_layer: what makes an analog operation of a layer; None: layers stay operators.
        literals: values, by argument name, that become constants of that name in the module.
    """
    importer = fx_importer.FxImporter(
        context=context, config_check=False, graph_node_importer_cls=_importer(build_layer)
    )
    importer._cc = places = _Places(context, py_attr_tracker=importer._py_attr_tracker)
    try:
        importer.import_stateless_graph(flat.module.graph, func_name="main")
    except AnalogcError:
        raise
    except Exception as err:
        raise places.unsupported(err) from err
    module = importer.module
    with context:
        (function,) = module.body.operations
        arguments = _settle_arguments(function, flat.arguments, literals or {})
    return module, arguments


def builtin_type(vtensor: Any) -> Any:
    """``tensor<?x16xf32>`` of ``!torch.vtensor<[?,16],f32>``; integers lose their sign."""
    found = _VTENSOR.fullmatch(str(vtensor))
    assert found is not None, f"no value tensor: {vtensor}"
    sizes, element = found.groups()
    element = _SIGN.sub(r"i\1", element)
    return ir.Type.parse(f"tensor<{''.join(f'{n}x' for n in sizes.split(',') if n)}{element}>",
                         vtensor.context)  # fmt: skip


class _Places(fx_importer.ContextCache):
    """Locations: the path of the module, and the user's own source line."""

    at: fx.Node | None = None

    def unsupported(self, err: Exception) -> UnsupportedError:
        """What a fault of the import at the present node says to the user."""
        text = (str(err).strip().splitlines() or [""])[0][:200]
        if self.at is None:
            return UnsupportedError(f"the graph has no form in the torch dialect: {text}")
        origin = self.at.meta.get(SOURCE, self.at)
        operands = ", ".join(map(str, self.at.args))
        return UnsupportedError(
            f"%{self.at.name}: {self.at.target}({operands}) has no form in the torch dialect: "
            f"{text}",
            where=source_line(origin) or module_path(origin) or None,
        )

    def get_node_location(self, node: fx.Node) -> Any:
        self.at = node
        origin = node.meta.get(SOURCE, node)
        line, path = source_line(origin), module_path(origin)
        place = ir.Location.unknown(self._c)
        if line is not None:
            file, _, number = line.rpartition(":")
            place = ir.Location.file(file, int(number), 0, context=self._c)
        return ir.Location.name(path, place, context=self._c) if path else place


def _importer(build_layer: LayerBuilder | None) -> type[Any]:
    class Importer(fx_importer.GraphNodeImporter):
        def _import_symbolic_torch_op(self, loc: Any, node: fx.Node, target: Any) -> None:
            if target in _OF_SIZES:
                self._import_torch_op_overload(loc, node, _OF_SIZES[target])
            else:
                super()._import_symbolic_torch_op(loc, node, target)

        def _import_torch_op_overload(
            self, loc: Any, node: fx.Node, concrete_target: Any = None
        ) -> None:
            if build_layer is None or node.target not in OPS:
                super()._import_torch_op_overload(loc, node, concrete_target)
                return
            with loc:
                args, scale = list(node.args), None
                if HELD in node.meta:
                    args[1], scale = node.meta[HELD]
                operands = tuple(self._operand(loc, arg) for arg in args)
                target: Any = node.target
                (result,) = self._unpack_node_result_types(node, target._schema)
                value = build_layer(
                    node.meta[META], operands, self._operand(loc, scale), builtin_type(result)
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


def _settle_arguments(
    function: Any, arguments: tuple[Argument, ...], literals: Mapping[str, Tensor]
) -> tuple[Argument, ...]:
    """Name the arguments, make constants of some, drop weights that nothing uses."""
    block = function.body.blocks[0]
    kept: list[Argument] = []
    for i, argument in reversed(list(enumerate(arguments))):
        value = block.arguments[i]
        if argument.kind != "input" and not any(True for _ in value.uses):
            block.erase_argument(i)
        elif argument.name in literals:
            with ir.InsertionPoint.at_block_begin(block), ir.Location.name(argument.name):
                literal = ir.Operation.create(
                    "torch.vtensor.literal",
                    results=[value.type],
                    attributes={"value": elements(literals[argument.name], argument.name)},
                )
            value.replace_all_uses_with(literal.result)
            block.erase_argument(i)
        else:
            value.set_location(ir.Location.name(argument.name))
            kept.insert(0, argument)
    inputs = [value.type for value in block.arguments]
    function.attributes["function_type"] = ir.TypeAttr.get(
        ir.FunctionType.get(inputs, function.type.results)
    )
    function.attributes["arg_attrs"] = ir.ArrayAttr.get([_names(argument) for argument in kept])
    return tuple(kept)


def _names(argument: Argument) -> Any:
    """What an argument stands for, as its attributes."""
    found = {NAME: argument.name, KIND: argument.kind}
    attributes = {key: ir.StringAttr.get(value) for key, value in found.items()}
    if argument.sources:
        names = [ir.StringAttr.get(source) for source in argument.sources]
        attributes[SOURCES] = ir.ArrayAttr.get(names)
    return ir.DictAttr.get(attributes)


def elements(value: Tensor, name: str) -> Any:
    """Elements attribute of ``value``: a resource named ``name``, or in place if it is tiny."""
    kind = fx_importer.create_mlir_tensor_type(value)
    plain = value.detach().cpu().contiguous()
    if plain.dtype is torch.bool or plain.numel() <= 1:
        # A splat has no resource, and bits of a resource are packed.
        bits = plain.view(torch.int16) if plain.dtype is torch.bfloat16 else plain
        return ir.DenseElementsAttr.get(bits.numpy(), type=kind)
    raw = plain.reshape(-1).view(torch.uint8).numpy()
    # No more than that: who reads bytecode must have it in memory of the same alignment.
    align = plain.element_size()
    return ir.DenseResourceElementsAttr.get_from_buffer(raw, name, kind, alignment=align)
