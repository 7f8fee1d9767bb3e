"""Files: written atomically, and read within bounds where they may come from a stranger."""
