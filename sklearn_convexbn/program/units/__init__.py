"""Kinds of hidden units: what the pursuit, its search and its refits know of a hidden layer."""
