"""Writing quantised folders, calibrated or not."""
