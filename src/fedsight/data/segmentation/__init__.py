"""Images with a class for each pixel: pairs of images and masks in folders, and drawn outlines."""
