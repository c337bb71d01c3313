"""What protects an update before it leaves its site."""
