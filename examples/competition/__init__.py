"""MCR beside the other methods against modality competition, on one small interface.

`strategy.py` is the interface, `rivals/` has a file for each method, `trainer.py` trains any of
them.
"""
