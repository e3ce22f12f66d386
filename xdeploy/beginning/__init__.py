"""`xdeploy init`: a recipe for a model, every option explained by its own source."""
