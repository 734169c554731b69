"""What everything stands on: arrays, scikit-learn's private forms, devices, processes."""
