"""Integer graph: ops with exact numpy meaning, the graph, its text form, verification and reference run."""
