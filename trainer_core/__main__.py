"""`python -m trainer_core` is `flux-lora`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
