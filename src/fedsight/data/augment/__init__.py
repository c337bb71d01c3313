"""Random changes to training images (`train.augment`), one file for each."""
