"""The parts of a self-check: what is compared of a run folder, and with what; nothing in it is written."""
