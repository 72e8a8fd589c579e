"""One figure a file. A module here that holds `FIGURE` is found by itself; there is no list to add it to."""
