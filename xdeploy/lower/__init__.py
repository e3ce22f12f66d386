"""Lowering: a QDQ ONNX graph to the integer graph of `lir`."""
