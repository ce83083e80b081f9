"""The packing search, for requests that run to completion: batches are sets of requests that start."""
