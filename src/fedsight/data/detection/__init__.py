"""Objects in images: boxes, and the formats that annotate them."""
