"""Each rewrite of raising and `fuse` on its own: IR before (the text), IR after (its CHECK lines), and equal values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lutra.passes.base import PassContext, PassReport
from lutra.passes.fuse.fuse import Fuse
from lutra.passes.raising.raising import raise_operations

HEADER = """
!x = !torch.vtensor<[2,3,8],f32>
!w = !torch.vtensor<[8],f32>
!m = !torch.vtensor<[8,8],f32>
!f = !torch.vtensor<[2,3,16],f32>
!half = !torch.vtensor<[2,3,8],bf16>
!heads = !torch.vtensor<[2,4,3,8],f32>
!groups = !torch.vtensor<[2,2,3,8],f32>
!low = !torch.vtensor<[2,4,3,4],f32>
!angles = !torch.vtensor<[1,3,8],f32>
!angles4 = !torch.vtensor<[1,1,3,8],f32>
!cache = !torch.vtensor<[2,4,16,8],f32>
!steps = !torch.vtensor<[2,3,32],f32>
!q = !torch.vtensor<[2,3,4,8],f32>
!kv = !torch.vtensor<[2,3,2,8],f32>
!pair = !torch.vtensor<[2,2,16,8],f32>
!part = !torch.vtensor<[2,2,15,8],f32>
!places = !torch.vtensor<[3],si64>
!thin = !torch.vtensor<[2,3,2,4],f32>
!thin_groups = !torch.vtensor<[2,2,3,4],f32>
!thin_pair = !torch.vtensor<[2,2,16,4],f32>
"""
CONSTANTS = """
  %none = torch.constant.none
  %true = torch.constant.bool true
  %false = torch.constant.bool false
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int4 = torch.constant.int 4
  %int6 = torch.constant.int 6
  %int8 = torch.constant.int 8
  %int15 = torch.constant.int 15
  %int32 = torch.constant.int 32
  %int-1 = torch.constant.int -1
  %float0 = torch.constant.float 0.0
  %eps = torch.constant.float 1.0e-3
  %last = torch.prim.ListConstruct %int-1 : (!torch.int) -> !torch.list<int>
  %eight = torch.prim.ListConstruct %int8 : (!torch.int) -> !torch.list<int>
"""
NORM = """
  %w = "lutra.param"() {sym = "norm.weight"} : () -> !w
  %square = torch.aten.pow.Tensor_Scalar %x, %int2 : !x, !torch.int -> !x
  %mean = torch.aten.mean.dim %square, %DIMS, %true, %none
      : !x, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[2,3,1],f32>
  %shifted = torch.aten.add.Scalar %mean, %eps, %int1
      : !torch.vtensor<[2,3,1],f32>, !torch.float, !torch.int -> !torch.vtensor<[2,3,1],f32>
  %scale = torch.aten.rsqrt %shifted : !torch.vtensor<[2,3,1],f32> -> !torch.vtensor<[2,3,1],f32>
"""
ROPE = """
  %c = torch.aten.unsqueeze %cos, %int1 : !angles, !torch.int -> !angles4
  %s = torch.aten.unsqueeze %sin, %int1 : !angles, !torch.int -> !angles4
  %straight = torch.aten.mul.Tensor %x, %c : !heads, !angles4 -> !heads
  %a = torch.aten.slice.Tensor %x, %int3, %int0, %SPLIT, %int1
      : !heads, !torch.int, !torch.int, !torch.int, !torch.int -> !low
  %b = torch.aten.slice.Tensor %x, %int3, %int4, %int8, %int1
      : !heads, !torch.int, !torch.int, !torch.int, !torch.int -> !low
  %negative = torch.aten.neg %b : !low -> !low
  %halves = torch.prim.ListConstruct %negative, %a : (!low, !low) -> !torch.list<vtensor>
  %turned = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !heads
  %crossed = torch.aten.mul.Tensor %turned, %s : !heads, !angles4 -> !heads
  %r = torch.aten.add.Tensor %straight, %crossed, %int1 : !heads, !heads, !torch.int -> !heads
  return %r : !heads
"""
STEP_ARGUMENTS = (
    "%q: !q, %k: !kv, %v: !kv, %cos: !angles, %sin: !angles, %cache_k: !pair, %cache_v: !pair, %places: !places"
)
STEP = """
  %qt = torch.aten.transpose.int %q, %int1, %int2 : !q, !torch.int, !torch.int -> !heads
  %kt = torch.aten.transpose.int %k, %int1, %int2 : !kv, !torch.int, !torch.int -> !groups
  %vt = torch.aten.transpose.int %v, %int1, %int2 : !kv, !torch.int, !torch.int -> !groups
  %query = "lutra.rope"(%qt, %cos, %sin) {pairs = "halves"} : (!heads, !angles, !angles) -> !heads
  %turned = "lutra.rope"(%kt, %cos, %sin) {pairs = "halves"} : (!groups, !angles, !angles) -> !groups
  %keys = "lutra.kv_update"(%cache_k, %turned, %places) : (!pair, !groups, !places) -> !pair
  %values = "lutra.kv_update"(%cache_v, %vt, %places) : (!pair, !groups, !places) -> !pair
"""
"""What stands between projections and attention once the other patterns are through."""
ATTEND = """
  %r = "lutra.attention"(%query, %keys, %values) {scale = 0.5 : f64, causal = 0 : i64, merge_heads = 1 : i64,
      operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!heads, !pair, !pair) -> !steps
  return %r : !steps"""


def main(arguments: str, result: str, body: str) -> str:
    return f"{HEADER}\nfunc.func @main({arguments}) -> {result} {{\n{CONSTANTS}\n{body}\n}}"


CASES = {
    "rms_norm": main(
        "%x: !x",
        "!x",
        NORM.replace("%DIMS", "%last")
        + """
  // CHECK: %[[W:.*]] = "lutra.param"() {sym = "norm.weight"}
  // CHECK-NEXT: %[[R:.*]] = "lutra.rms_norm"(%arg0, %[[W]]) {eps = 1.000000e-03 : f64, round_before_weight = 1
  // CHECK-NEXT: return %[[R]]
  %normal = torch.aten.mul.Tensor %x, %scale : !x, !torch.vtensor<[2,3,1],f32> -> !x
  %r = torch.aten.mul.Tensor %w, %normal : !w, !x -> !x
  return %r : !x""",
    ),
    "rms_norm with its operands the other way round": main(
        "%x: !x",
        "!x",
        NORM.replace("%DIMS", "%last")
        + """
  // CHECK: lutra.rms_norm
  %normal = torch.aten.mul.Tensor %scale, %x : !torch.vtensor<[2,3,1],f32>, !x -> !x
  %r = torch.aten.mul.Tensor %normal, %w : !x, !w -> !x
  return %r : !x""",
    ),
    "no rms_norm over other dimensions": main(
        "%x: !x",
        "!x",
        """
  // CHECK-NOT: lutra.rms_norm
  %all = torch.prim.ListConstruct %int1 : (!torch.int) -> !torch.list<int>
  %w = "lutra.param"() {sym = "norm.weight"} : () -> !w
  %square = torch.aten.pow.Tensor_Scalar %x, %int2 : !x, !torch.int -> !x
  %mean = torch.aten.mean.dim %square, %all, %true, %none
      : !x, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[2,1,8],f32>
  %shifted = torch.aten.add.Scalar %mean, %eps, %int1
      : !torch.vtensor<[2,1,8],f32>, !torch.float, !torch.int -> !torch.vtensor<[2,1,8],f32>
  %scale = torch.aten.rsqrt %shifted : !torch.vtensor<[2,1,8],f32> -> !torch.vtensor<[2,1,8],f32>
  %normal = torch.aten.mul.Tensor %x, %scale : !x, !torch.vtensor<[2,1,8],f32> -> !x
  %r = torch.aten.mul.Tensor %w, %normal : !w, !x -> !x
  return %r : !x""",
    ),
    "no rms_norm of another square": main(
        "%x: !x, %y: !x",
        "!x",
        NORM.replace("%DIMS", "%last")
        + """
  // CHECK-NOT: lutra.rms_norm
  %normal = torch.aten.mul.Tensor %y, %scale : !x, !torch.vtensor<[2,3,1],f32> -> !x
  %r = torch.aten.mul.Tensor %w, %normal : !w, !x -> !x
  return %r : !x""",
    ),
    "composite rms_norm": main(
        "%x: !x",
        "!x",
        """
  // CHECK: "lutra.rms_norm"(%arg0, %{{.*}}) {eps = 1.000000e-03 : f64, round_before_weight = 0
  %w = "lutra.param"() {sym = "norm.weight"} : () -> !w
  %r = torch.aten.rms_norm %x, %eight, %w, %eps : !x, !torch.list<int>, !w, !torch.float -> !x
  return %r : !x""",
    ),
    "layer_norm": main(
        "%x: !x",
        "!x",
        """
  // CHECK: "lutra.layer_norm"(%arg0, %{{.*}}, %{{.*}}) {eps = 1.000000e-03
  %w = "lutra.param"() {sym = "norm.weight"} : () -> !w
  %b = "lutra.param"() {sym = "norm.bias"} : () -> !w
  %r = torch.aten.layer_norm %x, %eight, %w, %b, %eps, %true
      : !x, !torch.list<int>, !w, !w, !torch.float, !torch.bool -> !x
  return %r : !x""",
    ),
    "layer_norm without a weight is left alone": main(
        "%x: !x",
        "!x",
        """
  // CHECK-NOT: lutra.layer_norm
  %r = torch.aten.layer_norm %x, %eight, %none, %none, %eps, %true
      : !x, !torch.list<int>, !torch.none, !torch.none, !torch.float, !torch.bool -> !x
  return %r : !x""",
    ),
    "rope": main(
        "%x: !heads, %cos: !angles, %sin: !angles",
        "!heads",
        '  // CHECK-NOT: torch.aten\n  // CHECK: lutra.rope"(%arg0, %arg1, %arg2)\n' + ROPE.replace("%SPLIT", "%int4"),
    ),
    "linear with a bias and a residual": main(
        "%x: !x",
        "!x",
        """
  // CHECK: %[[W:.*]] = "lutra.param"() {sym = "a.weight"}
  // CHECK: %[[B:.*]] = "lutra.param"() {sym = "a.bias"}
  // CHECK-NEXT: %[[R:.*]] = "lutra.linear"(%arg0, %[[W]], %[[B]], %arg0)
  // CHECK-NEXT: return %[[R]]
  %w = "lutra.param"() {sym = "a.weight"} : () -> !m
  %b = "lutra.param"() {sym = "a.bias"} : () -> !w
  %y = torch.aten.linear %x, %w, %b : !x, !m, !w -> !x
  %r = torch.aten.add.Tensor %x, %y, %int1 : !x, !x, !torch.int -> !x
  return %r : !x""",
    ),
    "no residual where the linear has another reader": main(
        "%x: !x",
        "!x, !x",
        """
  // CHECK: "lutra.linear"(%arg0, %{{[0-9]+}}) {
  // CHECK: torch.aten.add.Tensor
  %w = "lutra.param"() {sym = "a.weight"} : () -> !m
  %y = torch.aten.linear %x, %w, %none : !x, !m, !torch.none -> !x
  %r = torch.aten.add.Tensor %x, %y, %int1 : !x, !x, !torch.int -> !x
  return %r, %y : !x, !x""".replace("-> !x, !x", "-> !x"),
    ),
    "no residual under a factor": main(
        "%x: !x",
        "!x",
        """
  // CHECK: torch.aten.add.Tensor
  %w = "lutra.param"() {sym = "a.weight"} : () -> !m
  %y = torch.aten.linear %x, %w, %none : !x, !m, !torch.none -> !x
  %r = torch.aten.add.Tensor %x, %y, %int2 : !x, !x, !torch.int -> !x
  return %r : !x""",
    ),
    "addmm of GPT-2": main(
        "%x: !torch.vtensor<[6,8],f32>",
        "!torch.vtensor<[6,16],f32>",
        """
  // CHECK: "lutra.param"() {sym = "c.weight.T"} : () -> !torch.vtensor<[16,8],f32>
  // CHECK-NEXT: lutra.linear
  %w = "lutra.param"() {sym = "c.weight"} : () -> !torch.vtensor<[8,16],f32>
  %b = "lutra.param"() {sym = "c.bias"} : () -> !torch.vtensor<[16],f32>
  %r = torch.aten.addmm %b, %x, %w, %int1, %int1 : !torch.vtensor<[16],f32>, !torch.vtensor<[6,8],f32>,
      !torch.vtensor<[8,16],f32>, !torch.int, !torch.int -> !torch.vtensor<[6,16],f32>
  return %r : !torch.vtensor<[6,16],f32>""",
    ),
    "linears over one input merge, each part a split": main(
        "%x: !x",
        "!x, !f",
        """
  // CHECK: %[[W:.*]] = "lutra.param"() {{.*}}sym = "m.{a,b}.weight"} : () -> !torch.vtensor<[24,8],f32>
  // CHECK-NEXT: %[[Y:.*]] = "lutra.linear"(%arg0, %[[W]]) {lutra.path = "m.a|m.b"
  // CHECK-NEXT: %[[A:.*]] = "lutra.split"(%[[Y]]) {lutra.path = "m.a", start = 0
  // CHECK-NEXT: %[[B:.*]] = "lutra.split"(%[[Y]]) {lutra.path = "m.b", start = 8
  // CHECK-NEXT: return %[[A]], %[[B]]
  %a = "lutra.param"() {sym = "m.a.weight"} : () -> !m
  %b = "lutra.param"() {sym = "m.b.weight"} : () -> !torch.vtensor<[16,8],f32>
  %p = torch.aten.linear %x, %a, %none {lutra.path = "m.a"} : !x, !m, !torch.none -> !x
  %q = torch.aten.linear %x, %b, %none {lutra.path = "m.b"} : !x, !torch.vtensor<[16,8],f32>, !torch.none -> !f
  return %p, %q : !x, !f""",
    ),
    "gate and up in one linear feed the gate whole": main(
        "%x: !x",
        "!x",
        """
  // CHECK: %[[Y:.*]] = "lutra.linear"(%arg0, %{{.*}}) {{.*}} -> !torch.vtensor<[2,3,16],f32>
  // CHECK-NEXT: "lutra.gated_mlp"(%[[Y]]) {activation = "silu"
  // CHECK-NOT: lutra.split
  %a = "lutra.param"() {sym = "m.gate.weight"} : () -> !m
  %b = "lutra.param"() {sym = "m.up.weight"} : () -> !m
  %gate = torch.aten.linear %x, %a, %none {lutra.path = "m.gate"} : !x, !m, !torch.none -> !x
  %up = torch.aten.linear %x, %b, %none {lutra.path = "m.up"} : !x, !m, !torch.none -> !x
  %act = torch.aten.silu %gate : !x -> !x
  %r = torch.aten.mul.Tensor %act, %up : !x, !x -> !x
  return %r : !x""",
    ),
    "up before gate keeps two parts": main(
        "%x: !x",
        "!x",
        """
  // CHECK: "lutra.gated_mlp"(%{{.*}}, %{{.*}}) {activation = "gelu_tanh"
  %a = "lutra.param"() {sym = "m.gate.weight"} : () -> !m
  %b = "lutra.param"() {sym = "m.up.weight"} : () -> !m
  %tanh = torch.constant.str "tanh"
  %up = torch.aten.linear %x, %b, %none {lutra.path = "m.up"} : !x, !m, !torch.none -> !x
  %gate = torch.aten.linear %x, %a, %none {lutra.path = "m.gate"} : !x, !m, !torch.none -> !x
  %act = torch.aten.gelu %gate, %tanh : !x, !torch.str -> !x
  %r = torch.aten.mul.Tensor %up, %act : !x, !x -> !x
  return %r : !x""",
    ),
    "attention without its repeated heads": main(
        "%q: !heads, %k: !groups, %v: !groups",
        "!torch.vtensor<[2,3,32],f32>",
        """
  // CHECK: %[[R:.*]] = "lutra.attention"(%arg0, %arg1, %arg2) {causal = 1 : i64, merge_heads = 1
  // CHECK-NEXT: return %[[R]]
  %wide = torch.prim.ListConstruct %int2, %int2, %int2, %int3, %int8
      : (!torch.int, !torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %flat = torch.prim.ListConstruct %int2, %int4, %int3, %int8
      : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %k0 = torch.aten.unsqueeze %k, %int2 : !groups, !torch.int -> !torch.vtensor<[2,2,1,3,8],f32>
  %k1 = torch.aten.expand %k0, %wide, %false
      : !torch.vtensor<[2,2,1,3,8],f32>, !torch.list<int>, !torch.bool -> !torch.vtensor<[2,2,2,3,8],f32>
  %k2 = torch.aten.clone %k1, %int0 : !torch.vtensor<[2,2,2,3,8],f32>, !torch.int -> !torch.vtensor<[2,2,2,3,8],f32>
  %k3 = torch.aten.view %k2, %flat : !torch.vtensor<[2,2,2,3,8],f32>, !torch.list<int> -> !heads
  %v0 = torch.aten.unsqueeze %v, %int2 : !groups, !torch.int -> !torch.vtensor<[2,2,1,3,8],f32>
  %v1 = torch.aten.expand %v0, %wide, %false
      : !torch.vtensor<[2,2,1,3,8],f32>, !torch.list<int>, !torch.bool -> !torch.vtensor<[2,2,2,3,8],f32>
  %v2 = torch.aten.clone %v1, %int0 : !torch.vtensor<[2,2,2,3,8],f32>, !torch.int -> !torch.vtensor<[2,2,2,3,8],f32>
  %v3 = torch.aten.view %v2, %flat : !torch.vtensor<[2,2,2,3,8],f32>, !torch.list<int> -> !heads
  %a = torch.aten.scaled_dot_product_attention %q, %k3, %v3, %none, %float0, %true, %none, %false
      : !heads, !heads, !heads, !torch.none, !torch.float, !torch.bool, !torch.none, !torch.bool -> !heads
  %t = torch.aten.transpose.int %a, %int1, %int2 : !heads, !torch.int, !torch.int -> !torch.vtensor<[2,3,4,8],f32>
  %features = torch.prim.ListConstruct %int2, %int3, %int32 : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %r = torch.aten.view %t, %features
      : !torch.vtensor<[2,3,4,8],f32>, !torch.list<int> -> !torch.vtensor<[2,3,32],f32>
  return %r : !torch.vtensor<[2,3,32],f32>""",
    ),
    "kv_update": main(
        "%cache: !cache, %positions: !torch.vtensor<[3],si64>, %new: !heads",
        "!cache",
        """
  // CHECK: "lutra.kv_update"(%arg0, %arg2, %arg1)
  %r = torch.operator "torch.aten.index_copy"(%cache, %int2, %positions, %new)
      : (!cache, !torch.int, !torch.vtensor<[3],si64>, !heads) -> !cache
  return %r : !cache""",
    ),
    "rope and what goes into the caches": main(
        STEP_ARGUMENTS,
        "!steps",
        """
  // CHECK: %[[R:.*]]:3 = "lutra.rope_kv_update"(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5, %arg6, %arg7)
  // CHECK: %[[K:.*]] = torch.aten.slice.Tensor %[[R]]#1
  // CHECK: %[[V:.*]] = torch.aten.slice.Tensor %[[R]]#2
  // CHECK-NEXT: "lutra.attention"(%[[R]]#0, %[[K]], %[[V]])
  // CHECK-NOT: "lutra.rope"
  // CHECK-NOT: lutra.kv_update
"""
        + STEP
        + """
  %k15 = torch.aten.slice.Tensor %keys, %int2, %int0, %int15, %int1
      : !pair, !torch.int, !torch.int, !torch.int, !torch.int -> !part
  %v15 = torch.aten.slice.Tensor %values, %int2, %int0, %int15, %int1
      : !pair, !torch.int, !torch.int, !torch.int, !torch.int -> !part
  %r = "lutra.attention"(%query, %k15, %v15) {scale = 0.5 : f64, causal = 0 : i64, merge_heads = 1 : i64,
      operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!heads, !part, !part) -> !steps
  return %r : !steps""",
    ),
    "rope stays where keys turn by other angles": main(
        STEP_ARGUMENTS,
        "!steps",
        "  // CHECK-NOT: rope_kv_update\n" + STEP.replace("(%kt, %cos, %sin)", "(%kt, %sin, %cos)") + ATTEND,
    ),
    "rope stays where somebody reads the keys before values are there": main(
        STEP_ARGUMENTS,
        "!steps",
        "  // CHECK-NOT: rope_kv_update\n"
        + STEP.replace("%cache_v", "%twice").replace(
            "  %values", "  %twice = torch.aten.mul.Tensor %keys, %keys : !pair, !pair -> !pair\n  %values"
        )
        + ATTEND,
    ),
    "rope stays where the last update reads what the one before it wrote": main(
        STEP_ARGUMENTS,
        "!steps",
        "  // CHECK-NOT: rope_kv_update\n" + STEP.replace("%cache_v", "%keys") + ATTEND,
    ),
    "rope stays where values have heads of another size": main(
        STEP_ARGUMENTS.replace("%v: !kv", "%v: !thin").replace("%cache_v: !pair", "%cache_v: !thin_pair"),
        "!torch.vtensor<[2,3,16],f32>",
        "  // CHECK-NOT: rope_kv_update\n"
        + STEP.replace(
            "%v, %int1, %int2 : !kv, !torch.int, !torch.int -> !groups",
            "%v, %int1, %int2 : !thin, !torch.int, !torch.int -> !thin_groups",
        ).replace(
            "%vt, %places) : (!pair, !groups, !places) -> !pair",
            "%vt, %places) : (!thin_pair, !thin_groups, !places) -> !thin_pair",
        )
        + ATTEND.replace("!pair) -> !steps", "!thin_pair) -> !torch.vtensor<[2,3,16],f32>").replace(
            "%r : !steps", "%r : !torch.vtensor<[2,3,16],f32>"
        ),
    ),
    "identities vanish": main(
        "%x: !x",
        "!x",
        """
  // CHECK: func.func @main
  // CHECK-NEXT: %[[R:.*]] = torch.aten.relu %arg0
  // CHECK-NEXT: return %[[R]]
  %sizes = torch.prim.ListConstruct %int2, %int3, %int8 : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %a = torch.aten.clone %x, %int0 : !x, !torch.int -> !x
  %b = torch.aten.view %a, %sizes : !x, !torch.list<int> -> !x
  %c = torch.aten.sub.Scalar %b, %int0, %int1 : !x, !torch.int, !torch.int -> !x
  %d = torch.aten.mul.Scalar %c, %int1 : !x, !torch.int -> !x
  %e = torch.aten.dropout %d, %float0, %false : !x, !torch.float, !torch.bool -> !x
  %r = torch.aten.relu %e : !x -> !x
  return %r : !x""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrite(name: str, parse: Callable[[str], Any], filecheck: Callable[[str, str], None]):
    text = CASES[name].replace("-> !x, !f {", "-> (!x, !f) {").replace("-> !x, !x {", "-> (!x, !x) {")
    parsed = parse(text)
    expected = parsed.run()
    raise_operations(parsed.graph)
    Fuse().run(parsed.graph, PassContext(PassReport("fuse")))
    assert parsed.graph.module.operation.verify()
    filecheck(str(parsed.graph.module), text)
    for got, value in zip(parsed.run(), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-5)
