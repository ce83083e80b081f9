"""The certificate `memory-price`: prices on the memory of every batch."""
