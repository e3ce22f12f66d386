"""Processes: locks that die with their holder, children that die with their parent, and what a signal does."""
