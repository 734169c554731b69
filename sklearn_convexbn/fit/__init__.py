"""The course of a fit, from settings and data to a network, and networks from elsewhere."""
