"""Final training: the long training of a network that was found, or of any other, to weights that are deployed."""
