"""Front ends: user's model and data in, a plain-data `Network` with its samples out."""
