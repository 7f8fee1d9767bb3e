"""The parts of `verify_run`: each compares one kind of content of a run folder, which is only read."""
