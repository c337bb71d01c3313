"""Ways to spread samples over sites: one file each."""
