"""Float ONNX files as torch modules: each node of the file becomes one submodule, named after the node's origin.

`recognise` merges what exporters spell out, `folding` computes what does not depend on the data, `rows` holds one entry
per operator, `build` puts the module together and collects every obstacle, `verify` holds it against ONNX Runtime.
"""

from xdeploy.model.onnxgraph.build import load_onnx, module_of
from xdeploy.model.onnxgraph.module import OnnxModule

__all__ = ["OnnxModule", "load_onnx", "module_of"]
