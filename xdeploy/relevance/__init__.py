"""Relevance methods: one file per family; each registers functions that score a network."""
