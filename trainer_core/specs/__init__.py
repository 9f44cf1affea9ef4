"""The parts of the job, one concern a file. No torch here: ComfyUI's nodes import these files."""
