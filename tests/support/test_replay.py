"""What `replay` compares: what functions do, whatever they are called."""

import tvm
from lutra.tests.support.replay import normal_form
from tvm.script import relax as R
from tvm.script import tirx as T


def module(name: str, factor: float) -> tvm.IRModule:
    """Relax that calls one function `name`, which multiplies by `factor`."""

    @T.prim_func(private=True)
    def scale(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
        for i in range(4):
            y[i] = x[i] * T.float32(factor)

    builder = tvm.relax.BlockBuilder()
    with builder.function("main", [argument := tvm.relax.Var("x", R.Tensor((4,), "float32"))]):
        function = builder.add_func(scale, name)
        builder.emit_func_output(builder.emit(tvm.relax.call_tir(function, [argument], R.Tensor((4,), "float32"))))
    return builder.get()


def test_names_do_not_count_and_bodies_do():
    assert normal_form(module("twice", 2)) == normal_form(module("double_of", 2))
    assert normal_form(module("twice", 2)) != normal_form(module("twice", 3))
