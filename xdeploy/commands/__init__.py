"""The subcommands of `xdeploy`: each module adds its parsers; what a command needs is imported when it runs."""
