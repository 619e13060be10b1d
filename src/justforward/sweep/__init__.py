"""`justforward sweep`: a search for the learning rate and the size of the probe, on the development set."""
