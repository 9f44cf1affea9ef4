"""The built-in base: a small, truly pretrained FLUX, so that demo, tests and example workflow run anywhere without a download.

The files are of the same kinds as those of a full FLUX, and everything else treats them as such; only this module knows
where they are. How they were made and what they can do: `README.md` beside this file. No torch here.
"""

from pathlib import Path

WEIGHTS_DIR = Path(__file__).parent / "weights"
TRANSFORMER_PATH = WEIGHTS_DIR / "transformer.safetensors"
VAE_PATH = WEIGHTS_DIR / "vae.safetensors"
CLIP_L_PATH = WEIGHTS_DIR / "clip_l.safetensors"
T5_PATH = WEIGHTS_DIR / "t5.safetensors"
TOKENIZER_PATH = WEIGHTS_DIR / "tokenizer.json"

DEMO_DIR = Path(__file__).parent / "demo"
DEMO_PICTURES_DIR = DEMO_DIR / "pictures"
DEMO_UNSEEN_DIR = DEMO_DIR / "unseen"
DEMO_PLAIN_DIR = DEMO_UNSEEN_DIR / "original"  # as the base draws them; the file names are the captions
DEMO_STYLED_DIR = DEMO_UNSEEN_DIR / "styled"  # the same under the same names, in the style of the demo's pictures
DEMO_SUBJECT_DIR = DEMO_DIR / "subject"  # a fox that the base does not know, cut out
DEMO_CONFIG_DIR = DEMO_DIR / "config"  # the demo's style as a SimpleTuner configuration
