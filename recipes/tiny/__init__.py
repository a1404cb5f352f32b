"""How the tiny model is made: from random weights, by the paper's curriculum."""
