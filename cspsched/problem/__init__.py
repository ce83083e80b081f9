"""The nouns of the problem: requests, instance, cost model, schedule, metrics, referee."""
