"""Text templates of the C package and its build files."""
