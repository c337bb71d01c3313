"""The site's machine: service, contract enforcement, trainer process."""
