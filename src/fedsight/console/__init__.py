"""The consoles: runs and federations, and a site for its owner, in the browser while they go on."""

PORT = 8750  # at which that of runs is served if no other is asked for
SITE_PORT = 8751  # the same for that of a site
