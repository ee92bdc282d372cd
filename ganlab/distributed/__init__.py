"""One run on several processes: collectives, joining and leaving, batch norm over all."""
