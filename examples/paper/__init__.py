"""The data sets of the paper: loaders, encoders and the published recipe. Start at train.py."""
