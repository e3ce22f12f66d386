"""Reports from saved objects only; nothing is measured here."""
