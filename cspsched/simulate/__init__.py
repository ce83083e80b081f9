"""The event simulator: engine, KV block pool, log."""
