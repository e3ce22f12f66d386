"""Memory of a program: which tensors share it, and where everything lies in one arena."""

from xdeploy.memory.arena import plan_memory
from xdeploy.memory.buffers import Buffer, Layout, lower_bound
from xdeploy.memory.placement import Placement, place
from xdeploy.memory.storage import ALIASES, Place, Storage

__all__ = ["ALIASES", "Buffer", "Layout", "Place", "Placement", "Storage", "lower_bound", "place", "plan_memory"]
