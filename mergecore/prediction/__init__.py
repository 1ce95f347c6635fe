"""How long a merge will take, from a short measured probe of the disk and of the arithmetic."""
