"""The certificate `window-price`: a price on machine time for each window of time."""
