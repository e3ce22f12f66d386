"""Start-up code and linker scripts of the firmware that runs in emulators."""
