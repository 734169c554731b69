"""The training problem: kinds of hidden units, arrangements, objective, dual and certificate."""
