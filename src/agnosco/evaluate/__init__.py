"""Is it true? Other networks judge a run's maps, and sanity checks look for maps that are not the network's own."""
