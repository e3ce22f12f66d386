"""The AMX rows on the Bochs emulator, without an operating system: `python -m tests.kernels.bochs --help`."""
