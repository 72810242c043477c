"""The parts of a network: layers, initializers, dropout, standardization. Needs torch only."""
