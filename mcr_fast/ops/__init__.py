"""Dispatcher ops, one file each: fake, autograd and the choice of backend."""
