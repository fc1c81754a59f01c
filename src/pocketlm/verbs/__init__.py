"""What a user asks for: a command each, and a function each."""
