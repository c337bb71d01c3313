"""Protected updates: what leaves a site, how it is disturbed, and what that costs in epsilon."""
