"""What the child process gets of ComfyUI's environment, and that it works with no more."""

import os
import subprocess
import sys

import pytest
from node_files import node_file

environment = node_file("environment")
child_environment = environment.child_environment

SECRET = {
    **dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"), "1"),
    **dict.fromkeys(("GITHUB_TOKEN", "CUDA_TOKEN", "SOMETHING_ELSE", "SSH_AUTH_SOCK"), "1"),
    "https_proxy": "http://name:word@proxy",
}
NEEDED = {
    **{"PATH": "/bin", "HOME": "/users/a", "VIRTUAL_ENV": "/env", "LD_LIBRARY_PATH": "/lib", "LC_ALL": "C", "TMPDIR": "/tmp"},
    **{"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "0", "HSA_OVERRIDE_GFX_VERSION": "11"},
    **{"PYTORCH_HIP_ALLOC_CONF": "a", "OMP_NUM_THREADS": "2", "HF_HOME": "/hub", "TORCHINDUCTOR_CACHE_DIR": "/t"},
    **{"SystemRoot": "C:\\Windows", "TEMP": "C:\\t", "USERPROFILE": "C:\\u", "ProgramFiles(x86)": "C:\\p", "PATHEXT": ".EXE"},
}
ALWAYS = {"PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}


def test_only_what_a_training_needs_goes_along() -> None:
    assert child_environment(SECRET | NEEDED) == NEEDED | ALWAYS


def test_proxies_and_the_hub_s_token_go_along_where_the_owner_allows_the_network() -> None:
    allowed = child_environment(SECRET | NEEDED, allow_network=True)
    wanted = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "https_proxy"}
    assert allowed == NEEDED | {name: SECRET[name] for name in wanted} | {"PYTHONUTF8": "1"}


def test_the_tracker_s_key_goes_along_where_the_owner_has_it_report() -> None:
    told = child_environment(SECRET | {"WANDB_MODE": "online"})
    assert told == {"WANDB_MODE": "online", "WANDB_API_KEY": "1", "https_proxy": SECRET["https_proxy"]} | ALWAYS
    assert "WANDB_API_KEY" not in child_environment(SECRET | {"WANDB_MODE": "offline"}, allow_network=True)


def test_the_child_is_spared_the_allocator_that_comfyui_chose_for_itself() -> None:
    name = "PYTORCH_CUDA_ALLOC_CONF"
    assert child_environment({name: "backend:cudaMallocAsync"}) == ALWAYS
    both = child_environment({name: "expandable_segments:True,backend:cudaMallocAsync"})
    assert both[name] == "expandable_segments:True"


@pytest.mark.parametrize("isolated", [[], ["-I"]])
def test_python_starts_with_no_more_and_finds_its_environment(isolated: list[str]) -> None:
    command = [sys.executable, *isolated, "-c", "import sys, pydantic, tempfile; print(sys.prefix, tempfile.gettempdir())"]
    done = subprocess.run(command, env=child_environment(os.environ), capture_output=True, text=True)
    assert done.stdout.startswith(sys.prefix), done.stderr
