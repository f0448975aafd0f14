"""Linear models on numbers encrypted under the client's Paillier key: two parties, no dealer."""
