"""What a build will give and how long it will take, told before it is run."""
