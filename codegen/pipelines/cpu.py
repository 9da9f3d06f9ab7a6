"""From Relax to calls of functions that are scheduled for a CPU."""

import tvm
from tvm import relax

from ..runtime.workspace import Workspace, with_workspace
from .own_constants import own_constants
from .schedule import ScheduleKnobs, elementwise_schedule

DEFAULTS = ScheduleKnobs()


def cpu_pipeline(module: tvm.IRModule, knobs: ScheduleKnobs = DEFAULTS) -> tuple[tvm.IRModule, Workspace]:
    """Relax as calls of scheduled functions over planned memory, and the memory that `main` takes as parameters."""
    passes = relax.transform
    plan = tvm.transform.Sequential(
        [
            passes.LegalizeOps(),
            passes.AnnotateTIROpPattern(),
            passes.FoldConstant(),
            own_constants,
            passes.FuseOps(),
            passes.FuseTIR(),
            passes.DeadCodeElimination(),
            elementwise_schedule(knobs),
            passes.RewriteDataflowReshape(),
            passes.ToNonDataflow(),
            passes.RemovePurityChecking(),
            passes.CallTIRRewrite(),
            passes.StaticPlanBlockMemory(),
        ]
    )
    lower = tvm.transform.Sequential(
        [
            passes.LowerAllocTensor(),
            passes.KillAfterLastUse(),
            passes.LowerRuntimeBuiltin(),
            passes.ComputePrimValue(),
            passes.VMShapeLower(),
            passes.AttachGlobalSymbol(),
        ]
    )
    module, workspace = with_workspace(plan(module))
    return lower(module), workspace
