"""How pico, the built-in small FLUX, was made: render, caption, train a VAE, train a transformer, export, measure."""
