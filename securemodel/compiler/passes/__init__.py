"""From the lowered graph to a program that can run; securemodel.engines.masked.compiling has them in their order."""
