"""Linear layers on numbers encrypted under the client's Paillier key, for two parties (docs/encrypted-graphs.md)."""
