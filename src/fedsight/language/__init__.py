"""What people read, in English and in Chinese: messages, the catalogue, the current language."""
