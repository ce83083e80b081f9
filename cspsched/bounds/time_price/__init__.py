"""The certificate `time-price`: a price on machine time and one on waiting."""
