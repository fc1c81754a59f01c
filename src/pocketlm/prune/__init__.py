"""Weights left out: tickets, magnitude, curvature, and structure that is really gone."""
