"""CrypTen 0.4.1 as a back end: the captured graph on CrypTen's tensors, one process for each party."""
