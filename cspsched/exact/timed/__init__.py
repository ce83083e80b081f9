"""The timed state search: best first over the clock and what every request has."""
