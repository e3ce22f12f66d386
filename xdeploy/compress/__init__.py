"""Compression: a plan becomes final integer codes (`apply.compress`); fake-quantised execution in `fakequant`."""
