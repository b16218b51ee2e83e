"""Methods that are not ours: PEFT's own inits, and functions of the user's. The same recipes train them."""
