"""Model files in ComfyUI's folders: listed for the combos, and found again by their names."""

from pathlib import Path

import folder_paths

from ..trainer_core.errors import JobError
from ..trainer_core.graph_parts import NO_FILE, PREVIEW_DECODER
from .folders import input_dir

GGUF_KEYS = {"diffusion_models": ("unet_gguf",), "text_encoders": ("clip_gguf",)}


def list_files(folder: str) -> list[str]:
    """The .safetensors and .gguf files in a folder of ComfyUI's, after the choice of none."""
    listed = {file for file in folder_paths.get_filename_list(folder) if file.lower().endswith(".safetensors")}
    return [NO_FILE, *sorted(listed | _gguf_files(folder), key=str.lower)]


def chosen_file(folder: str, name: str, who: str) -> str:
    """The absolute path of a file that was chosen in a combo of `list_files`; JobError where there is none."""
    path = (
        None if name == NO_FILE else next(filter(None, (folder_paths.get_full_path(key, name) for key in _keys(folder))), None)
    )
    if path is None:
        raise JobError(f"{who} is {name!r}; choose a file in ComfyUI's {folder} folder, and press R if it is new there")
    return str(Path(path).absolute())


class ComfyPlaces:
    """Where this ComfyUI keeps things, as `graph_parts.py` asks for them."""

    def model_file(self, folder: str, name: str) -> str:
        """The absolute path of a chosen file; JobError says where to put one that is not there."""
        path = next(filter(None, (folder_paths.get_full_path(key, name) for key in _keys(folder))), None)
        if path is None:
            place = folder_paths.get_folder_paths(folder)[0]
            raise JobError(
                f"LoadFluxForTraining: there is no {name!r} in ComfyUI's {folder} folder; put it into {place} and press R, "
                "choose another, or write where it lies into other_files"
            )
        return str(Path(path).absolute())

    def tokenizers(self) -> dict[str, str]:
        """ComfyUI ships both; they lie beside its own text encoders."""
        import comfy.sd1_clip

        comfy_dir = Path(comfy.sd1_clip.__file__).parent
        return {
            "clip_tokenizer_path": str(comfy_dir / "sd1_tokenizer"),
            "t5_tokenizer_path": str(comfy_dir / "text_encoders" / "t5_tokenizer"),
        }

    def preview_decoder(self) -> dict[str, str]:
        """What ComfyUI's own previews of FLUX are made with."""
        path = folder_paths.get_full_path("vae_approx", PREVIEW_DECODER)
        return {"preview_decoder_path": str(Path(path).absolute())} if path else {}

    def input_dir(self) -> Path:
        return input_dir()


def _gguf_files(folder: str) -> set[str]:
    """ComfyUI itself does not list these; the pack ComfyUI-GGUF adds folders of its own for them."""
    roots = {Path(root) for key in _keys(folder) for root in folder_paths.get_folder_paths(key)}
    return {str(path.relative_to(root)) for root in roots for path in root.rglob("*.gguf")} if folder in GGUF_KEYS else set()


def _keys(folder: str) -> list[str]:
    """The folder's key in ComfyUI, and that of ComfyUI-GGUF for the same kind of file where it is installed."""
    return [folder, *(key for key in GGUF_KEYS.get(folder, ()) if key in folder_paths.folder_names_and_paths)]
