"""What requests find in the prefix cache at best, and its check."""
