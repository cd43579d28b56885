"""A service on virtual time: the router's own classes over replicas that only keep time.

An hour of load takes minutes, and the same seed gives the same hour. What is decided is decided by the code that
serves; what is simulated is the engine (its step-time model, canvases that take as many steps as drawn), the age of
statistics, and cold starts.
"""
