"""What several certificates are made of, and slow, plain twins of it."""
