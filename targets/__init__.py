"""Bundled targets: one TOML file each; `support/` holds start-up code and linker scripts."""
