"""Short vectors of float32 as values in numba kernels: what a loop over channels means, written so that it is one.

LLVM vectorises a short loop only if it can prove that what is stored is not what is loaded next, which it rarely can
for arrays found through indices. A vector is loaded, computed with in registers, and stored. Its width must be a
constant of the kernel; nothing tests that offsets lie in the array.

Symbols: W the width; `flat` a C-contiguous float32 array, `at` an offset into it in numbers.
"""

from llvmlite import ir
from numba import types
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic

FLAGS = ("contract", "nsz")  # as `numba_tools.CONTRACT`


class Vector(types.Type):
    """The numba type of W numbers."""

    def __init__(self, width: int):
        self.width = width
        super().__init__(name=f"Vector({width})")


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(ir.FloatType(), fe_type.width))


def _address(context, builder, kind, flat, at, width):
    """Where the vector starts."""
    data = context.make_array(kind)(context, builder, flat).data
    return builder.bitcast(builder.gep(data, [at]), ir.VectorType(ir.FloatType(), width).as_pointer())


def _splat(builder, number, width):
    """A vector of W times the same number."""
    lanes = ir.VectorType(ir.FloatType(), width)
    first = builder.insert_element(ir.Constant(lanes, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
    return builder.shuffle_vector(first, ir.Constant(lanes, ir.Undefined), zeros)


@intrinsic(prefer_literal=True)
def load(typing_context, flat, at, width):
    """The W numbers from `at` on."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    kind = Vector(width.literal_value)

    def codegen(context, builder, signature, arguments):
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], kind.width)
        return builder.load(address, align=4)

    return kind(flat, types.intp, width), codegen


@intrinsic
def store(typing_context, flat, at, vector):
    """Put a vector at `at`."""

    def codegen(context, builder, signature, arguments):
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], vector.width)
        builder.store(arguments[2], address, align=4)
        return context.get_dummy_value()

    return types.void(flat, types.intp, vector), codegen


@intrinsic
def times(typing_context, one, other):
    """Product, number by number."""

    def codegen(context, builder, signature, arguments):
        return builder.fmul(*arguments, flags=FLAGS)

    return one(one, one), codegen


@intrinsic
def scaled(typing_context, factor, vector):
    """factor * vector, a number times a vector."""

    def codegen(context, builder, signature, arguments):
        return builder.fmul(_splat(builder, arguments[0], vector.width), arguments[1], flags=FLAGS)

    return vector(types.float32, vector), codegen


@intrinsic
def plus_scaled(typing_context, vector, factor, other):
    """vector + factor * other."""

    def codegen(context, builder, signature, arguments):
        product = builder.fmul(_splat(builder, arguments[1], vector.width), arguments[2], flags=FLAGS)
        return builder.fadd(arguments[0], product, flags=FLAGS)

    return vector(vector, types.float32, vector), codegen


@intrinsic
def dot(typing_context, one, other):
    """Sum of the products, in an order of LLVM's that is always the same."""

    def codegen(context, builder, signature, arguments):
        number, lanes = ir.FloatType(), ir.VectorType(ir.FloatType(), one.width)
        name = f"llvm.vector.reduce.fadd.v{one.width}f32"
        function = builder.module.declare_intrinsic(name, (), ir.FunctionType(number, [number, lanes]))
        product = builder.fmul(*arguments, flags=FLAGS)
        return builder.call(function, [ir.Constant(number, 0.0), product], fastmath=(*FLAGS, "reassoc"))

    return types.float32(one, one), codegen


@intrinsic
def plus_times(typing_context, vector, one, other):
    """vector + one * other."""

    def codegen(context, builder, signature, arguments):
        product = builder.fmul(arguments[1], arguments[2], flags=FLAGS)
        return builder.fadd(arguments[0], product, flags=FLAGS)

    return vector(vector, one, other), codegen
