"""Secret sharing between parties and a dealer: rings, streams, gates, channels."""
