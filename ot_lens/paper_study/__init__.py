"""The study of arXiv 2603.04355: its preset, its published numbers, and what running it costs."""
