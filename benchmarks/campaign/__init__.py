"""The parts of compression.py: networks, cells of the comparison, rows through the flow, tables and charts."""
