"""The types that all packages share: layouts, orders, exact sums, seeds, errors."""
