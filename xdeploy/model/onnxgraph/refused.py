"""Operators that are refused by name: why, and the nearest thing that works."""

from __future__ import annotations

_NORM = "BatchNormalization, which folds into the layer before it"
_LOOP = "convolutions; recurrent networks are not deployed"
_QUANT = "a float file, or one that is quantised throughout"

REFUSED: dict[str, tuple[str, str]] = {
    **{
        op: ("normalises by statistics of each sample, which the integer code does not compute", _NORM)
        for op in ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization",
                   "LpNormalization", "MeanVarianceNormalization", "LRN", "SimplifiedLayerNormalization")
    },
    **{op: ("is recurrent", _LOOP) for op in ("LSTM", "GRU", "RNN", "Scan", "Loop")},
    **{op: ("chooses at run time", "a graph without control flow") for op in ("If", "Where", "NonZero", "Compress")},
    **{op: ("is part of attention", "convolutions and linear layers")
       for op in ("Attention", "Einsum", "RotaryEmbedding")},
    **{
        op: ("belongs to quantised files", _QUANT)
        for op in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
                   "ConvInteger", "MatMulInteger")
    },
    **{op: ("gives the class, not the scores", "leave it out; the class is the largest output")
       for op in ("ArgMax", "ArgMin", "TopK", "Hardmax", "OneHot")},
    **{op: (f"{op} is not supported", "GlobalAveragePool or AveragePool")
       for op in ("LpPool", "GlobalLpPool", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
                  "ReduceSumSquare", "ReduceProd", "MaxUnpool", "MaxRoiPool", "RoiAlign")},
    **{op: ("draws random numbers", "export in evaluation mode")
       for op in ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
                  "Multinomial")},
    **{op: ("is no element-wise function with an integer form", "Relu, Sigmoid, Tanh or Gelu")
       for op in ("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Shrink",
                  "ThresholdedRelu", "Mod", "BitShift", "Not", "And", "Or", "Xor", "Equal", "Less", "Greater",
                  "LessOrEqual", "GreaterOrEqual", "IsNaN", "IsInf")},
    "Tile": ("repeats the data", "Resize in mode nearest, or Concat"),
    "GatherND": ("picks values by computed places", "Slice"),
    "GatherElements": ("picks values by computed places", "Slice"),
    "GridSample": ("picks values by computed places", "Resize in mode nearest"),
    "NonMaxSuppression": ("is post-processing", "leave it out and do it after the network"),
    "CumSum": ("is a running sum", "AveragePool"),
}  # fmt: skip
