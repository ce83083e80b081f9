"""What a command computes: comparisons, ladders, windows, checks. Nothing is printed here."""
