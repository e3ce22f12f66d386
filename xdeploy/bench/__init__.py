"""Runners: one file per way of running an artifact, all giving one `Measurement`."""
