"""The vocabulary that every room shares: layouts, orders, exact sums, seeds, errors."""
