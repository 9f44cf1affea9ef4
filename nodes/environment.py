"""What the child process is told of ComfyUI's environment: what is on these lists, and nothing else.

ComfyUI is started out of somebody's shell, and that holds keys of other programs as well. A training needs its libraries,
folders and cards. What speaks to the network comes along only where the owner allows the network (`permissions.py`), and what
Weights & Biases reads only where the owner has said WANDB_MODE=online. What is on a list and by its name a secret stays behind.

Windows' names of variables have no case, so names are compared in capitals.
"""

from collections.abc import Mapping

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
# fmt: off
SYSTEM = {
    # the system
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
    "XDG_DATA_HOME", "XDG_RUNTIME_DIR",
    # libraries, and compilers for what torch compiles
    "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "LIBRARY_PATH", "CC", "CXX",
    # Windows, where Python and drivers do not start without some of them
    "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "OS", "USERNAME", "USERPROFILE", "HOMEDRIVE", "HOMEPATH",
    "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "ALLUSERSPROFILE", "PUBLIC", "PROGRAMFILES", "PROGRAMFILES(X86)",
    "PROGRAMW6432", "COMMONPROGRAMFILES", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE", "PROCESSOR_IDENTIFIER",
    # Python
    "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX",
    "PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS", "PYTHONFAULTHANDLER", "MPLBACKEND", "MPLCONFIGDIR",
    # caches, and the owner's own words about the network
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
    "WANDB_MODE",
}
CARDS = (
    # beginnings of names: cards
    "CUDA_", "CUDNN_", "CUBLAS_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "ROCM_", "HSA_", "AMD_", "AMDGPU_", "GPU_", "MIOPEN_",
    "ROCBLAS_", "HIPBLASLT_", "BNB_",
    # torch, threads and memory
    "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "MALLOC_",
    "LC_",
)
NETWORK = {
    # proxies and certificates
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
}
# fmt: on
OWN = ("HF_", "HUGGING_FACE_HUB_", "FLUX_LORA_")  # the hub's, and addresses that a webhook may name
SECRETS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "ACCESS_KEY", "PRIVATE_KEY")


def child_environment(environment: Mapping[str, str], *, allow_network: bool = False) -> dict[str, str]:
    """What of ComfyUI's environment the child gets; the CUDA allocator that ComfyUI chose for itself is left out.

    Text is UTF-8 on every system. Without the network, Hugging Face's libraries are told so, too.
    """
    reports = environment.get("WANDB_MODE") == "online"
    kept = {name: value for name, value in environment.items() if _goes_along(name.upper(), allow_network, reports)}
    settings = [part for part in kept.pop(ALLOCATOR, "").split(",") if part and "cudaMallocAsync" not in part]
    if settings:
        kept[ALLOCATOR] = ",".join(settings)
    return kept | {"PYTHONUTF8": "1"} | ({} if allow_network else {"HF_HUB_OFFLINE": "1"})


def _goes_along(name: str, allow_network: bool, reports: bool) -> bool:
    if (allow_network or reports) and name in NETWORK:
        return True
    if (allow_network and name.startswith(OWN)) or (reports and name.startswith("WANDB_")):
        return True  # tokens, by the owner's switch
    return (name in SYSTEM or name.startswith(CARDS)) and not any(word in name for word in SECRETS)
