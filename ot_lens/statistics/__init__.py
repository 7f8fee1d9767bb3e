"""Estimates with intervals, paired tests, resampling and nulls."""
