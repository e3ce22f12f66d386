"""gate: Artifact and limits -> GateResult. Reads what was measured and holds it to limits; it measures nothing itself.

    result = check_artifact(Path("out"), Limits(flash=128 * 1024, accuracy=0.9), baseline=Path("before"))
    result.passed, result.failed

The same result becomes terminal lines, JSON, JUnit XML, SARIF and a Markdown summary.
"""

from xdeploy.gate.judge import check_artifact
from xdeploy.gate.limits import FIGURES, RULES, Limits
from xdeploy.gate.result import Change, FigureChange, Gate, GateResult, LayerChange, TargetResult

__all__ = [
    "FIGURES",
    "RULES",
    "Change",
    "FigureChange",
    "Gate",
    "GateResult",
    "LayerChange",
    "Limits",
    "TargetResult",
    "check_artifact",
]
