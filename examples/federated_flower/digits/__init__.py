"""A Flower app: sites with unequal digits train softmax regression."""
