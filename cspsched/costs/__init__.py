"""Facts about models and devices, cost presets, fitting, minorants."""
