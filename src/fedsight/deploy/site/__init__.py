"""The site's machine: the site service, contract enforcement, the trainer process."""
