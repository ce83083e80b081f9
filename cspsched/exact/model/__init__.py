"""The models for CP-SAT: variables, rules, batch times, horizon."""
