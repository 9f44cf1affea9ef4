"""What the performance claims rest on: each file is a command that measures one of them."""
