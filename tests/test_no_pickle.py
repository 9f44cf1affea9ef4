"""Nothing here opens a pickle, runs text as code, or hands words to a shell: read off the code itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

from support import ROOT

CODE = [path for folder in ("trainer_core", "nodes") for path in sorted((ROOT / folder).rglob("*.py"))]
RUN_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "code", "codeop"}
READERS = {"torch.load", "torch.save", "np.load", "numpy.load", "torch.hub.load", "torch.jit.load", "pd.read_pickle"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec", "compile"}
WORDS = {"allow_pickle", "trust_remote_code", "weights_only", "shell"}  # which a call may not have
STARTS = ("subprocess.", "os.spawn", "os.exec")
WITHOUT_WEIGHTS = {"AutoTokenizer", "CLIPConfig", "CLIPProcessor"}  # what from_pretrained may be asked for besides


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file, and what is called as it is written."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_file_imports_what_opens_pickles() -> None:
    for path in CODE:
        names = set(imported(path))
        assert not {name.split(".")[0] for name in names} & RUN_CODE and not names & READERS, path


def test_no_file_calls_what_opens_pickles_or_runs_text() -> None:
    for path in CODE:
        for name, call in calls(path):
            assert name not in READERS | SHELLS, f"{path}:{call.lineno}: {name}"
            assert not {word.arg for word in call.keywords} & {"allow_pickle", "trust_remote_code", "weights_only", "shell"}, (
                path
            )


def test_weights_come_from_pretrained_folders_as_safetensors_only() -> None:
    found = [(name.split(".")[0], call) for path in CODE for name, call in calls(path) if name.endswith(".from_pretrained")]
    assert found
    for name, call in found:
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name in WITHOUT_WEIGHTS or words.get("use_safetensors") == "True", f"{name} may read a pickle"


def test_only_python_processes_of_ours_are_started_and_by_a_list_of_words() -> None:
    starts = [(path.name, call) for path in CODE for name, call in calls(path) if name.startswith(STARTS)]
    assert {name for name, _ in starts} == {"process.py", "lookers.py"}
    for _, call in starts:
        words = call.args[0]
        assert isinstance(words, ast.List) and ast.unparse(words.elts[0]) == "sys.executable"
