"""`slidemil serve`: slides, scores and reviews in a browser, through one port of this machine."""
