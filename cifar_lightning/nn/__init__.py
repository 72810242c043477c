"""What a network is made of: layers, initializers, dropout, standardization. Torch only."""
