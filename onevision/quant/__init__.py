"""Fewer bits: precision recipes, calibration, the importance matrix, and the gates that judge the result."""
