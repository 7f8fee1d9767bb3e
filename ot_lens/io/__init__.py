"""Files: written atomically, read with bounds where they may be a stranger's."""
