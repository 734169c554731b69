"""From X and y as users pass them to whitened rows and encoded targets."""
