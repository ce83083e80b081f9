"""Why a policy is above the optimum: causes, ignorance, shadow prices, and what a request waits for."""
